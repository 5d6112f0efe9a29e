// Cross-entropy over a whole vocabulary: a block a row of logits in bf16, which is read twice, the second time from the cache, and
// becomes its own gradient.
//
// Rows begin at multiples of 16 bytes and are read eight logits at a time; what pads them stays zero. Exponentials are f32 as in
// ops/vocabulary_loss.rs; the threads' sums are added in f64. Shared memory: 2 doubles a warp.
// Floor: 6 bytes a logit, 2 where no gradient is wanted.
#include "activation.cuh"
#include "vectors.cuh"

namespace vocabulary_loss {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr uint32_t kIgnored = 0xffffffffu;

// Calls use(column, eight, count) for each of this thread's vectors of a row, of which the first `count` values are logits.
template <typename Use>
__device__ __forceinline__ void each(const bf16* row, int classes, Use use) {
#pragma unroll 4
    for (int at = int(threadIdx.x) * kEight; at < classes; at += kThreads * kEight) {
        use(at, widen(load_raw(row + at)), classes - at);
    }
}

// Largest value so far, and the sum of the exponentials of all values less it.
struct Sum {
    float peak;
    float sum;
    // Zero, or NaN once a value was not finite, which comparisons would pass over.
    float check;

    __device__ __forceinline__ void add(const Floats& x, int count) {
        float largest = peak;
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            largest = i < count ? fmaxf(largest, x.at[i]) : largest;
        }
        if (largest > peak) {
            sum *= exp_poly(peak - largest);
            peak = largest;
        }
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            check = fmaf(x.at[i], 0.0f, check);
            sum += i < count ? exp_poly(x.at[i] - peak) : 0.0f;
        }
    }
};

}  // namespace vocabulary_loss

// row_losses (rows) f64 against targets (rows), class indices or kIgnored, whose loss and gradient are zero; with `backward`
// logits (rows x classes) become *scale * (softmax - target). grid: rows.
extern "C" __global__ void __launch_bounds__(512) vocabulary_loss_rows(bf16* logits, double* row_losses, const uint32_t* targets,
                                                                       const float* scale, int classes, int backward) {
    using namespace vocabulary_loss;
    __shared__ float peaks[kWarps];
    __shared__ double sums[kWarps];
    bf16* row = logits + uint64_t(blockIdx.x) * pitch_of(classes);
    if (targets[blockIdx.x] == kIgnored) {
        if (threadIdx.x == 0) {
            row_losses[blockIdx.x] = 0.0;
        }
        each(row, backward ? classes : 0, [&](int at, const Floats&, int) { store_raw(row + at, Raw{}); });
        return;
    }
    int target = int(targets[blockIdx.x]);
    // Before anyone writes.
    float wanted = to_float(row[target]);
    Sum own = {-INFINITY, 0.0f, 0.0f};
    each(row, classes, [&](int, const Floats& x, int count) { own.add(x, count); });
    float peak = block_largest(own.peak, peaks);
    double total = block_sum(double(own.sum * exp_poly(own.peak - peak) + own.check), sums);
    if (threadIdx.x == 0) {
        row_losses[blockIdx.x] = log(total) + double(peak) - double(wanted);
    }
    if (!backward) {
        return;
    }
    float own_scale = *scale, factor = float(double(own_scale) / total);
    each(row, classes, [&](int at, const Floats& x, int count) {
        Floats slopes;
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            float slope = fmaf(exp_poly(x.at[i] - peak), factor, at + i == target ? -own_scale : 0.0f);
            slopes.at[i] = i < count ? slope : 0.0f;
        }
        store_raw(row + at, narrowed(slopes));
    });
}
