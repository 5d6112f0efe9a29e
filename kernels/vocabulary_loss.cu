// Cross-entropy over a whole vocabulary: a block a row of logits, which is read twice, the second time from the cache.
//
// Rows begin at any multiple of 4 bytes, so the few logits before the first multiple of 16 and after the last are read one by one.
// Exponentials are f32 as in ops/vocabulary_loss.rs; the threads' sums are added in f64. Shared memory: 2 doubles a warp.
// Floor: 8 bytes a logit.
#include "activation.cuh"

namespace vocabulary_loss {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
typedef Pack<float, 4> Four;

// Calls wide(column, four) for each of this thread's vectors of a row of logits, and single(column) for what remains.
template <typename Wide, typename Single>
__device__ __forceinline__ void each(const float* row, int classes, Wide wide, Single single) {
    int head = int((16 - uint64_t(row) % 16) % 16 / 4);
    head = head < classes ? head : classes;
    int vectors = (classes - head) / 4, rest = classes - 4 * vectors;
#pragma unroll 4
    for (int vector = threadIdx.x; vector < vectors; vector += kThreads) {
        wide(head + 4 * vector, load_pack<Four>(row + head + 4 * vector));
    }
    if (int(threadIdx.x) < rest) {
        int at = int(threadIdx.x);
        single(at < head ? at : at + 4 * vectors);
    }
}

// Largest value so far, and the sum of the exponentials of all values less it.
struct Sum {
    float peak;
    float sum;
    // Zero, or NaN once a value was not finite, which comparisons would pass over.
    float check;

    __device__ __forceinline__ void add(float x) {
        check = fmaf(x, 0.0f, check);
        if (x > peak) {
            sum *= exp_poly(peak - x);
            peak = x;
        }
        sum += exp_poly(x - peak);
    }

    __device__ __forceinline__ void add(const Four& x) {
        float largest = fmaxf(fmaxf(x.at[0], x.at[1]), fmaxf(x.at[2], x.at[3]));
        if (largest > peak) {
            sum *= exp_poly(peak - largest);
            peak = largest;
        }
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            check = fmaf(x.at[i], 0.0f, check);
            total += exp_poly(x.at[i] - peak);
        }
        sum += total;
    }
};

// The largest of the block's values.
__device__ __forceinline__ float block_peak(float value, float* warps) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(kAll, value, step));
    }
    if (lane_id() == 0) {
        warps[warp_id()] = value;
    }
    __syncthreads();
    for (int warp = 0; warp < kWarps; ++warp) {
        value = fmaxf(value, warps[warp]);
    }
    return value;
}

}  // namespace vocabulary_loss

// dlogits (rows x classes) = scale * (softmax - target), row_losses (rows) f64; targets (rows) class indices. Both matrices begin at
// the same place between multiples of 16 bytes. grid: rows.
extern "C" __global__ void __launch_bounds__(512) vocabulary_loss_rows(float* dlogits, double* row_losses, const float* logits,
                                                                       const uint32_t* targets, int classes, float scale) {
    using namespace vocabulary_loss;
    __shared__ float peaks[kWarps];
    __shared__ double sums[kWarps];
    const float* x = logits + uint64_t(blockIdx.x) * classes;
    float* d = dlogits + uint64_t(blockIdx.x) * classes;
    Sum own = {-INFINITY, 0.0f, 0.0f};
    each(x, classes, [&](int, const Four& four) { own.add(four); }, [&](int at) { own.add(x[at]); });
    float peak = block_peak(own.peak, peaks);
    double total = block_sum(double(own.sum * exp_poly(own.peak - peak) + own.check), sums);
    float factor = float(double(scale) / total);
    int target = int(targets[blockIdx.x]);
    auto slope = [&](float value, int at) { return fmaf(exp_poly(value - peak), factor, at == target ? -scale : 0.0f); };
    auto wide = [&](int at, const Four& four) {
        Four slopes;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            slopes.at[i] = slope(four.at[i], at + i);
        }
        store_pack(d + at, slopes);
    };
    each(x, classes, wide, [&](int at) { d[at] = slope(x[at], at); });
    if (threadIdx.x == 0) {
        row_losses[blockIdx.x] = log(total) + double(peak) - double(x[target]);
    }
}
