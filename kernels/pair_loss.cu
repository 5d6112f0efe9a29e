// Losses of pairs against the other pairs of their micro-batch, as ops/pair_loss.rs: a block an anchor, which leaves the gradients of
// its scores; then a block a unit vector and 256 columns.
//
// Products of unit vectors are summed in f32 by a warp, exponentials and their sums in f64. The threads of a block add up in a fixed
// order. Shared memory: a double a warp.
// Floor: 8 bytes a value of the unit vectors, if all of a micro-batch's stay in the cache.
#include "common.cuh"

namespace pair_loss {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

}  // namespace pair_loss

// units (2 pairs x width) f32, anchor and positive in turn. scores (pairs x pairs): gradients of <a_i, p_j>; row_losses (2 pairs) f64:
// a pair's loss in its anchor's row, zero in its positive's. factors: temperature, scale. grid: pairs.
extern "C" __global__ void __launch_bounds__(256) pair_loss_rows(float* scores, double* row_losses, const float* units,
                                                                 const float* factors, int pairs, int width) {
    using namespace pair_loss;
    __shared__ double peaks[kWarps];
    __shared__ double sums[kWarps];
    int pair = int(blockIdx.x);
    float temperature = factors[0], scale = factors[1];
    const float* anchor = units + uint64_t(2 * pair) * width;
    float* own = scores + uint64_t(pair) * pairs;
    for (int other = warp_id(); other < pairs; other += kWarps) {
        const float* positive = units + uint64_t(2 * other + 1) * width;
        float product = 0.0f;
        for (int at = lane_id(); at < width; at += kWarp) {
            product = fmaf(anchor[at], positive[at], product);
        }
        product = warp_sum(product);
        if (lane_id() == 0) {
            own[other] = product / temperature;
        }
    }
    __syncthreads();
    double peak = -INFINITY, sum = 0.0;
    for (int other = int(threadIdx.x); other < pairs; other += kThreads) {
        peak = fmax(peak, double(own[other]));
    }
    peak = block_largest(peak, peaks);
    for (int other = int(threadIdx.x); other < pairs; other += kThreads) {
        sum += exp(double(own[other]) - peak);
    }
    sum = block_sum(sum, sums);
    // Before anyone writes.
    double right = double(own[pair]);
    __syncthreads();
    if (threadIdx.x == 0) {
        row_losses[2 * pair] = peak + log(sum) - right;
        row_losses[2 * pair + 1] = 0.0;
    }
    float factor = scale / temperature;
    for (int other = int(threadIdx.x); other < pairs; other += kThreads) {
        double probability = exp(double(own[other]) - peak) / sum;
        own[other] = float(probability - (other == pair ? 1.0 : 0.0)) * factor;
    }
}

// dunits (2 pairs x width) f32, from the gradients of the scores. grid: (2 pairs, tiles of 256 columns).
extern "C" __global__ void __launch_bounds__(256) pair_loss_units(float* dunits, const float* scores, const float* units, int pairs,
                                                                  int width) {
    int row = int(blockIdx.x), own = row / 2, column = int(blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= width) {
        return;
    }
    bool is_anchor = row % 2 == 0;
    float sum = 0.0f;
    for (int other = 0; other < pairs; ++other) {
        float factor = is_anchor ? scores[uint64_t(own) * pairs + other] : scores[uint64_t(other) * pairs + own];
        int from = 2 * other + (is_anchor ? 1 : 0);
        sum = fmaf(factor, units[uint64_t(from) * width + column], sum);
    }
    dunits[uint64_t(row) * width + column] = sum;
}
