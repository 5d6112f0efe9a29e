// Elementwise passes: activations and their slopes, dropout, conversions, and the bias gradients of segments.
//
// 256 threads a block, each 8 neighbouring values (16 bytes of bf16), no shared memory but for the bias sums.
// Floors: bytes read and written once; the masks cost one Philox block (about 100 integer operations) for 4 values.
#include "activation.cuh"

namespace elementwise {

constexpr int kThreads = 256;
constexpr int kVector = 8;

// Calls run(at) for each of this thread's values among `count`: grid-stride, kVector neighbours at a time.
template <typename Run>
__device__ __forceinline__ void each_vector(uint64_t count, Run run) {
    uint64_t stride = uint64_t(gridDim.x) * kThreads * kVector;
    for (uint64_t at = (uint64_t(blockIdx.x) * kThreads + threadIdx.x) * kVector; at < count; at += stride) {
        run(at, int(count - at < kVector ? count - at : kVector));
    }
}

template <typename T>
__device__ __forceinline__ Pack<T, kVector> load(const T* x, uint64_t at, int valid) {
    if (valid == kVector) {
        return *reinterpret_cast<const Pack<T, kVector>*>(x + at);
    }
    Pack<T, kVector> values = {};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        values.at[i] = i < valid ? x[at + i] : T(0);
    }
    return values;
}

template <typename T>
__device__ __forceinline__ void store(T* x, uint64_t at, int valid, const Pack<T, kVector>& values) {
    if (valid == kVector) {
        *reinterpret_cast<Pack<T, kVector>*>(x + at) = values;
        return;
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        if (i < valid) {
            x[at + i] = values.at[i];
        }
    }
}

template <typename T>
__device__ __forceinline__ void forward(T* out, T* pre, const float* bias, uint64_t count, int width, int activation) {
    each_vector(count, [&](uint64_t at, int valid) {
        Pack<T, kVector> x = load(pre, at, valid), y;
        int column = int(at % width);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            float value = to_float(x.at[i]) + (i < valid ? bias[column] : 0.0f);
            column = column + 1 == width ? 0 : column + 1;
            x.at[i] = from_float<T>(value);
            y.at[i] = from_float<T>(activate(value, activation));
        }
        store(pre, at, valid, x);
        if (out) {
            store(out, at, valid, y);
        }
    });
}

template <typename T>
__device__ __forceinline__ void backward(T* dout, const T* pre, uint64_t count, int activation) {
    each_vector(count, [&](uint64_t at, int valid) {
        Pack<T, kVector> x = load(pre, at, valid), d = load(dout, at, valid);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            d.at[i] = from_float<T>(to_float(d.at[i]) * activation_slope(to_float(x.at[i]), activation));
        }
        store(dout, at, valid, d);
    });
}

// One block of 4 values a thread: Philox gives 4 words.
template <typename T>
__device__ __forceinline__ void drop(T* x, const uint2* keys, int rows, int width, uint32_t threshold, float scale, uint64_t seed,
                                     const uint64_t* round) {
    int blocks = (width + 3) / 4;
    uint64_t count = uint64_t(rows) * blocks;
    uint32_t now = uint32_t(*round);
    for (uint64_t item = uint64_t(blockIdx.x) * kThreads + threadIdx.x; item < count; item += uint64_t(gridDim.x) * kThreads) {
        int row = int(item / blocks), block = int(item % blocks);
        uint2 key = keys[row];
        Words words = keyed_block(seed, kStreamHiddenDropout, now, key.x, key.y, uint32_t(block));
        T* own = x + uint64_t(row) * width;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int column = 4 * block + i;
            if (column < width) {
                own[column] = words.at[i] < threshold ? T(0) : from_float<T>(to_float(own[column]) * scale);
            }
        }
    }
}

template <typename T>
__device__ __forceinline__ void bias_sums(float* gradients, const T* dout, const uint32_t* starts, const uint32_t* ends,
                                          const uint64_t* offsets, const uint32_t* add, int width, float (&sums)[kWarp][kWarp + 1]) {
    int segment = int(blockIdx.y), column = int(blockIdx.x) * kWarp + lane_id();
    uint32_t end = ends[segment];
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (uint32_t row = starts[segment] + warp_id(); row < end; row += kWarp) {
            sum += to_float(dout[uint64_t(row) * width + column]);
        }
    }
    sums[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() == 0 && column < width) {
        float* out = gradients + offsets[segment] + column;
        float total = 0.0f;
        for (int warp = 0; warp < kWarp; ++warp) {
            total += sums[warp][lane_id()];
        }
        *out = add[segment] ? *out + total : total;
    }
}

}  // namespace elementwise

// pre (rows x width) += bias (width); out = f(pre), or out is null. count = rows * width.
extern "C" __global__ void __launch_bounds__(256) activation_forward_f32(float* out, float* pre, const float* bias, uint64_t count,
                                                                         int width, int activation) {
    elementwise::forward(out, pre, bias, count, width, activation);
}

extern "C" __global__ void __launch_bounds__(256) activation_forward_bf16(bf16* out, bf16* pre, const float* bias, uint64_t count,
                                                                          int width, int activation) {
    elementwise::forward(out, pre, bias, count, width, activation);
}

// dout (count) *= f'(pre)
extern "C" __global__ void __launch_bounds__(256) activation_backward_f32(float* dout, const float* pre, uint64_t count,
                                                                          int activation) {
    elementwise::backward(dout, pre, count, activation);
}

extern "C" __global__ void __launch_bounds__(256) activation_backward_bf16(bf16* dout, const bf16* pre, uint64_t count,
                                                                           int activation) {
    elementwise::backward(dout, pre, count, activation);
}

// x (rows x width) becomes x * mask * scale; keys (rows): task, example; words below `threshold` drop. round: one number.
extern "C" __global__ void __launch_bounds__(256) dropout_f32(float* x, const uint2* keys, int rows, int width, uint32_t threshold,
                                                              float scale, uint64_t seed, const uint64_t* round) {
    elementwise::drop(x, keys, rows, width, threshold, scale, seed, round);
}

extern "C" __global__ void __launch_bounds__(256) dropout_bf16(bf16* x, const uint2* keys, int rows, int width, uint32_t threshold,
                                                               float scale, uint64_t seed, const uint64_t* round) {
    elementwise::drop(x, keys, rows, width, threshold, scale, seed, round);
}

// out (count) = x, rounded to nearest even.
extern "C" __global__ void __launch_bounds__(256) convert_to_bf16(bf16* out, const float* x, uint64_t count) {
    using namespace elementwise;
    each_vector(count, [&](uint64_t at, int valid) {
        Pack<float, kVector> from = load(x, at, valid);
        Pack<bf16, kVector> to;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            to.at[i] = from_float<bf16>(from.at[i]);
        }
        store(out, at, valid, to);
    });
}

extern "C" __global__ void __launch_bounds__(256) convert_to_f32(float* out, const bf16* x, uint64_t count) {
    using namespace elementwise;
    each_vector(count, [&](uint64_t at, int valid) {
        Pack<bf16, kVector> from = load(x, at, valid);
        Pack<float, kVector> to;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            to.at[i] = to_float(from.at[i]);
        }
        store(out, at, valid, to);
    });
}

// gradients[offsets[s]..] (width) = or += column sums of rows starts[s]..ends[s] of dout (rows x width).
// grid: (tiles of 32 columns, segments); 1024 threads; 32 x 33 floats of shared memory, summed warp by warp.
extern "C" __global__ void __launch_bounds__(1024) bias_gradients_bf16(float* gradients, const bf16* dout, const uint32_t* starts,
                                                                       const uint32_t* ends, const uint64_t* offsets,
                                                                       const uint32_t* add, int width) {
    __shared__ float sums[kWarp][kWarp + 1];
    elementwise::bias_sums(gradients, dout, starts, ends, offsets, add, width, sums);
}

extern "C" __global__ void __launch_bounds__(1024) bias_gradients_f32(float* gradients, const float* dout, const uint32_t* starts,
                                                                      const uint32_t* ends, const uint64_t* offsets,
                                                                      const uint32_t* add, int width) {
    __shared__ float sums[kWarp][kWarp + 1];
    elementwise::bias_sums(gradients, dout, starts, ends, offsets, add, width, sums);
}
