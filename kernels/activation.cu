// Elementwise passes: slopes of activations, dropout, conversion, and the bias gradients of segments. Rows of bf16 matrices begin
// every pitch_of(width) elements, and what pads them is zero before and after.
//
// 256 threads a block, each 8 neighbouring values (16 bytes of bf16), no shared memory but for the bias sums.
// Floors: bytes read and written once; the masks cost one Philox block (about 100 integer operations) for 4 values.
#include "activation.cuh"

namespace elementwise {

constexpr int kThreads = 256;
constexpr int kVector = 8;
typedef Pack<bf16, kVector> Vector;

// Calls run(item) for each of this thread's items among `count`.
template <typename Run>
__device__ __forceinline__ void each(uint64_t count, Run run) {
    uint64_t stride = uint64_t(gridDim.x) * kThreads;
    for (uint64_t item = uint64_t(blockIdx.x) * kThreads + threadIdx.x; item < count; item += stride) {
        run(item);
    }
}

}  // namespace elementwise

// dout (rows x width) *= f'(pre); vectors: 8 neighbouring values each, in all rows.
extern "C" __global__ void __launch_bounds__(256) activation_backward_bf16(bf16* dout, const bf16* pre, uint64_t vectors,
                                                                           int activation) {
    using namespace elementwise;
    each(vectors, [&](uint64_t item) {
        Vector x = load_pack<Vector>(pre + item * kVector), d = load_pack<Vector>(dout + item * kVector);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            d.at[i] = from_float<bf16>(to_float(d.at[i]) * activation_slope(to_float(x.at[i]), activation));
        }
        store_pack(dout + item * kVector, d);
    });
}

// x (rows x width) becomes x * mask * scale; keys (rows): task, example; words below `threshold` drop. round: one number.
extern "C" __global__ void __launch_bounds__(256) dropout_bf16(bf16* x, const uint2* keys, int rows, int width, uint32_t threshold,
                                                               float scale, uint64_t seed, const uint64_t* round) {
    // A Philox block gives 4 words.
    typedef Pack<bf16, 4> Four;
    int blocks = (width + 3) / 4;
    uint32_t now = uint32_t(*round);
    elementwise::each(uint64_t(rows) * blocks, [&](uint64_t item) {
        int row = int(item / blocks), block = int(item % blocks);
        uint2 key = keys[row];
        Words words = keyed_block(seed, kStreamHiddenDropout, now, key.x, key.y, uint32_t(block));
        bf16* own = x + uint64_t(row) * pitch_of(width) + 4 * block;
        Four values = load_pack<Four>(own);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            values.at[i] = words.at[i] < threshold ? bf16(0) : from_float<bf16>(to_float(values.at[i]) * scale);
        }
        store_pack(own, values);
    });
}

// out (rows x columns) = x (rows x columns, dense), rounded to nearest even.
extern "C" __global__ void __launch_bounds__(256) convert_to_bf16(bf16* out, const float* x, int rows, int columns) {
    using namespace elementwise;
    int vectors = pitch_of(columns) / kVector;
    each(uint64_t(rows) * vectors, [&](uint64_t item) {
        int column = int(item % vectors) * kVector;
        const float* from = x + item / vectors * columns + column;
        Vector to;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            to.at[i] = from_float<bf16>(column + i < columns ? from[i] : 0.0f);
        }
        store_pack(out + item * kVector, to);
    });
}
