// Embedding bag forward: out_e = scale_e * sum of the rows of example e, from a table of which only touched rows are stored.
//
// A block an example, threads along the width, rows in ascending order as on the CPU. No shared memory.
// Floor: 4 bytes a value of each n-gram's row, 2 a value written; one addition a value.
#include "common.cuh"

namespace embedding_bag {

constexpr uint32_t kUntouched = 0xffffffffu;

// cos(2 pi turns). On a GPU the general cosine would reduce its argument through local memory.
__device__ __forceinline__ double cosine_of_turns(double turns) {
#ifdef TASKLOOM_EMULATED
    return cos(6.283185307179586 * turns);
#else
    return cospi(2.0 * turns);
#endif
}

// Value `column` of an untouched row: `Keyed::normal` of ops/philox.rs times the deviation.
__device__ __forceinline__ float initial(uint64_t seed, double deviation, uint32_t row, int column) {
    Words words = keyed_block(seed, kStreamInit, 0, 0xffffffffu, row, uint32_t(column / 2));
    uint32_t first = column % 2 ? words.at[2] : words.at[0], second = column % 2 ? words.at[3] : words.at[1];
    double radius = (double(first) + 1.0) / 4294967296.0;
    double angle = double(second) / 4294967296.0;
    return float(sqrt(-2.0 * log(radius)) * cosine_of_turns(angle) * deviation);
}

}  // namespace embedding_bag

// out (examples x dim, rows pitch_of(dim) apart) bf16 and/or out_wide (examples x dim, dense) f32. Example e has the n-grams
// offsets[e] .. offsets[e + 1]; slots says where the row of each lies in values (slots x dim), or kUntouched, where rows has its
// number unless deviation is 0. grid: examples.
extern "C" __global__ void __launch_bounds__(256) embedding_bag_forward(bf16* out, float* out_wide, const uint32_t* offsets,
                                                                        const uint32_t* rows, const uint32_t* slots,
                                                                        const float* scales, const float* values, int dim,
                                                                        uint64_t seed, double deviation) {
    using namespace embedding_bag;
    uint32_t example = blockIdx.x;
    uint32_t start = offsets[example], end = offsets[example + 1];
    for (int column = threadIdx.x; column < dim; column += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 4
        for (uint32_t at = start; at < end; ++at) {
            uint32_t slot = slots[at];
            if (slot != kUntouched) {
                sum += values[uint64_t(slot) * dim + column];
            } else if (deviation != 0.0) {
                sum += initial(seed, deviation, rows[at], column);
            }
        }
        sum *= scales[example];
        if (out) {
            out[uint64_t(example) * pitch_of(dim) + column] = from_float<bf16>(sum);
        }
        if (out_wide) {
            out_wide[uint64_t(example) * dim + column] = sum;
        }
    }
}

// values[slots[i]] = the initial row rows[i], for rows that are touched for the first time. grid: such rows.
extern "C" __global__ void __launch_bounds__(256) embedding_rows_init(float* values, const uint32_t* rows, const uint32_t* slots,
                                                                      int dim, uint64_t seed, double deviation) {
    for (int column = threadIdx.x; column < dim; column += blockDim.x) {
        float value = deviation == 0.0 ? 0.0f : embedding_bag::initial(seed, deviation, rows[blockIdx.x], column);
        values[uint64_t(slots[blockIdx.x]) * dim + column] = value;
    }
}
