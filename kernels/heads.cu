// All heads in one launch: logits = h W_t^T + b_t for the rows of every segment t, and their backward pass.
//
// Heads have few outputs, so these are products of a tall matrix with a few rows: bound by reading the hidden states.
// heads_forward, heads_input: a warp a row, lanes along the width; weights come from the caches. No shared memory.
// heads_weight: a block per (output, 32 columns of the width, segment), 8 warps share out the rows.
// Rows of bf16 matrices begin every pitch_of(width) elements.
// Floors: 2 bytes a hidden value read (forward, weight) or written (input).
#include "common.cuh"

// One task's rows and head.
struct HeadSegment {
    uint32_t start;
    uint32_t end;
    uint32_t outputs;
    uint32_t padding;
    // Where its weights (outputs x width), its bias (outputs) and its logits (rows x outputs) begin.
    uint64_t weight;
    uint64_t bias;
    uint64_t logits;
};

namespace heads {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The segment of a packed row.
__device__ __forceinline__ int segment_of(const HeadSegment* segments, int count, uint32_t row) {
    int found = 0;
    while (found + 1 < count && row >= segments[found].end) {
        ++found;
    }
    return found;
}

}  // namespace heads

// logits f32, segment after segment; hidden (rows x width); values: parameters of all heads. grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) heads_forward(float* logits, const bf16* hidden, const float* values,
                                                                const HeadSegment* segments, int count, int rows, int width) {
    using namespace heads;
    uint32_t row = blockIdx.x * kWarps + warp_id();
    if (row >= uint32_t(rows)) {
        return;
    }
    HeadSegment own = segments[segment_of(segments, count, row)];
    const bf16* h = hidden + uint64_t(row) * pitch_of(width);
    for (uint32_t output = 0; output < own.outputs; ++output) {
        const float* w = values + own.weight + uint64_t(output) * width;
        float sum = 0.0f;
        for (int at = lane_id(); at < width; at += kWarp) {
            sum = fmaf(to_float(h[at]), w[at], sum);
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) {
            logits[own.logits + uint64_t(row - own.start) * own.outputs + output] = sum + values[own.bias + output];
        }
    }
}

// dhidden (rows x width) = dlogits W_t, padded with zeros. grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) heads_input(bf16* dhidden, const float* dlogits, const float* values,
                                                              const HeadSegment* segments, int count, int rows, int width) {
    using namespace heads;
    uint32_t row = blockIdx.x * kWarps + warp_id();
    if (row >= uint32_t(rows)) {
        return;
    }
    HeadSegment own = segments[segment_of(segments, count, row)];
    const float* d = dlogits + own.logits + uint64_t(row - own.start) * own.outputs;
    int pitch = pitch_of(width);
    for (int at = lane_id(); at < pitch; at += kWarp) {
        float sum = 0.0f;
        for (uint32_t output = 0; output < own.outputs && at < width; ++output) {
            sum = fmaf(d[output], values[own.weight + uint64_t(output) * width + at], sum);
        }
        dhidden[uint64_t(row) * pitch + at] = from_float<bf16>(sum);
    }
}

// gradients (laid out like the heads' parameters) = or += dlogits^T h and the column sums of dlogits; add (segments).
// grid: (outputs of the widest head x tiles of 32 columns, segments): of the three only the first may be large.
extern "C" __global__ void __launch_bounds__(256) heads_weight(float* gradients, const float* dlogits, const bf16* hidden,
                                                               const HeadSegment* segments, const uint32_t* add, int width) {
    using namespace heads;
    __shared__ float sums[kWarps][kWarp + 1];
    __shared__ float biases[kWarps];
    HeadSegment own = segments[blockIdx.y];
    int tiles = (width + kWarp - 1) / kWarp, tile = int(blockIdx.x) % tiles;
    uint32_t output = blockIdx.x / tiles;
    if (output >= own.outputs) {
        return;
    }
    int column = tile * kWarp + lane_id();
    const float* d = dlogits + own.logits + output;
    float sum = 0.0f, bias = 0.0f;
#pragma unroll 4
    for (uint32_t row = own.start + warp_id(); row < own.end; row += kWarps) {
        float factor = d[uint64_t(row - own.start) * own.outputs];
        bias += factor;
        if (column < width) {
            sum = fmaf(factor, to_float(hidden[uint64_t(row) * pitch_of(width) + column]), sum);
        }
    }
    sums[warp_id()][lane_id()] = sum;
    if (lane_id() == 0) {
        biases[warp_id()] = bias;
    }
    __syncthreads();
    if (warp_id() > 0) {
        return;
    }
    bool adds = add[blockIdx.y] != 0;
    float total = 0.0f, bias_total = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) {
        total += sums[warp][lane_id()];
        bias_total += biases[warp];
    }
    if (column < width) {
        float* out = gradients + own.weight + uint64_t(output) * width + column;
        *out = adds ? *out + total : total;
    }
    if (tile == 0 && lane_id() == 0) {
        float* out = gradients + own.bias + output;
        *out = adds ? *out + bias_total : bias_total;
    }
}
