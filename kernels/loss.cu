// Losses of all segments with their gradients in two launches, in f64 as ops/loss.rs.
//
// loss_rows: a warp a row, lanes along the outputs; leaves each row's loss in f64. loss_sums adds a segment's rows, and its
// losses of earlier micro-batches, in a fixed order. No shared memory but a double a warp.
// Floor: 8 bytes a logit and 8 a row; two f64 exponentials a logit.
#include "common.cuh"

enum Loss { kCrossEntropy = 0, kBinaryCrossEntropy = 1, kSquaredError = 2, kKnown = 3 };

// One task's rows, logits and targets.
struct LossSegment {
    uint32_t start;
    uint32_t end;
    uint32_t outputs;
    uint32_t loss;
    // Row of `factors`, `sums`.
    uint32_t task;
    // d(sum of losses) is multiplied by this.
    float scale;
    // Where its logits (rows x outputs) begin, and its targets: u32 classes (rows), or f32 (rows x outputs), NaN if missing.
    uint64_t logits;
    uint64_t targets;
    // Where the f32 weights of its classes (outputs) begin among the targets, or kUnweighted.
    uint64_t weights;
};

constexpr uint64_t kUnweighted = ~uint64_t(0);

namespace loss {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The row's loss, on every lane; d = scale * (softmax - smoothed target), each class's term times its weight, or 1 without them.
__device__ __forceinline__ double cross_entropy(float* d, const float* x, int outputs, uint32_t target, double smoothing,
                                                const float* weights, float scale) {
    double even = smoothing / double(outputs), peak = -INFINITY, sum = 0.0, plain = 0.0, spread = 0.0;
    for (int at = lane_id(); at < outputs; at += kWarp) {
        peak = fmax(peak, double(x[at]));
    }
    peak = warp_largest(peak);
    for (int at = lane_id(); at < outputs; at += kWarp) {
        double weight = weights ? double(weights[at]) : 1.0;
        sum += exp(double(x[at]) - peak);
        plain += weight * double(x[at]);
        spread += weight;
    }
    sum = warp_sum(sum);
    plain = warp_sum(plain);
    spread = even * warp_sum(spread);
    double own = (1.0 - smoothing) * (weights ? double(weights[target]) : 1.0);
    double all = weights ? own + spread : 1.0;
    double inverse = 1.0 / sum;
    for (int at = lane_id(); at < outputs; at += kWarp) {
        double probability = exp(double(x[at]) - peak) * inverse;
        double wanted = even * (weights ? double(weights[at]) : 1.0) + (uint32_t(at) == target ? own : 0.0);
        d[at] = float(all * probability - wanted) * scale;
    }
    return all * (peak + log(sum)) - own * double(x[target]) - (smoothing > 0.0 ? even * plain : 0.0);
}

__device__ __forceinline__ double masked(float* d, const float* logits, const float* targets, int outputs, bool squared, float scale) {
    double total = 0.0;
    for (int at = lane_id(); at < outputs; at += kWarp) {
        double x = double(logits[at]), y = double(targets[at]);
        if (isnan(y)) {
            d[at] = 0.0f;
        } else if (squared) {
            total += (x - y) * (x - y);
            d[at] = float(2.0 * (x - y)) * scale;
        } else {
            total += fmax(x, 0.0) - x * y + log1p(exp(-fabs(x)));
            d[at] = float(1.0 / (1.0 + exp(-x)) - y) * scale;
        }
    }
    return warp_sum(total);
}

}  // namespace loss

// dlogits (as logits) and row_losses (rows) f64; rows whose losses are known are left as they are. factors (tasks) f32 multiply the gradients, or null. grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) loss_rows(float* dlogits, double* row_losses, const float* logits,
                                                            const uint32_t* targets, const LossSegment* segments, int count,
                                                            int rows, double smoothing, const float* factors) {
    using namespace loss;
    uint32_t row = blockIdx.x * kWarps + warp_id();
    if (row >= uint32_t(rows)) {
        return;
    }
    int index = 0;
    while (index + 1 < count && row >= segments[index].end) {
        ++index;
    }
    LossSegment own = segments[index];
    if (own.loss == kKnown) {
        return;
    }
    uint64_t local = row - own.start;
    float scale = factors ? own.scale * factors[own.task] : own.scale;
    float* d = dlogits + own.logits + local * own.outputs;
    const float* x = logits + own.logits + local * own.outputs;
    double value;
    if (own.loss == kCrossEntropy) {
        const float* weights = own.weights == kUnweighted ? nullptr : reinterpret_cast<const float*>(targets) + own.weights;
        value = cross_entropy(d, x, int(own.outputs), targets[own.targets + local], smoothing, weights, scale);
    } else {
        const float* y = reinterpret_cast<const float*>(targets) + own.targets + local * own.outputs;
        value = masked(d, x, y, int(own.outputs), own.loss == kSquaredError, scale);
    }
    if (lane_id() == 0) {
        row_losses[row] = value;
    }
}

// sums (tasks) f64 = or += the segment's row losses; add (segments). grid: segments; no two of one task.
extern "C" __global__ void __launch_bounds__(256) loss_sums(double* sums, const double* row_losses, const LossSegment* segments,
                                                            const uint32_t* add) {
    __shared__ double warps[kWarp];
    LossSegment own = segments[blockIdx.x];
    double sum = 0.0;
    for (uint32_t row = own.start + threadIdx.x; row < own.end; row += blockDim.x) {
        sum += row_losses[row];
    }
    sum = block_sum(sum, warps);
    if (threadIdx.x == 0) {
        sums[own.task] = add[blockIdx.x] ? sums[own.task] + sum : sum;
    }
}
