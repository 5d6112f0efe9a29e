// Means over stretches of packed rows. Forward: a block a mean and 256 columns. Backward: the same blocks, each lane a vector that
// it writes to all rows of the stretch. Floor: 2 bytes a value read and 2 a mean, or the other way round.
#include "row_sums.cuh"

// out (means x width): row i is the mean of the rows bounds[i]..bounds[i + 1] of x. grid: (means, tiles of 256 columns).
extern "C" __global__ void __launch_bounds__(256) mean_pool_forward(bf16* out, const bf16* x, const uint32_t* bounds, int width) {
    __shared__ SumRoom room;
    uint32_t first = bounds[blockIdx.x], last = bounds[blockIdx.x + 1];
    float sum = column_of_sum(x, width, first, last, [](uint32_t i) { return i; }, [](uint32_t) { return 1.0f; }, room);
    int column = int(blockIdx.y) * kSumTile + int(threadIdx.x);
    if (column < width) {
        out[uint64_t(blockIdx.x) * width + column] = from_float<bf16>(sum * (1.0f / float(last - first)));
    }
}

// dx (rows x width): each row of stretch i = dout's row i over the stretch's length, and of the stretch behind the last of `means` zero.
// grid: (means + 1, tiles of 256 columns).
extern "C" __global__ void __launch_bounds__(256) mean_pool_backward(bf16* dx, const bf16* dout, const uint32_t* bounds, int means,
                                                                     int width) {
    int at = int(blockIdx.y) * kSumTile + lane_id() * kEight;
    if (at >= width) {
        return;
    }
    uint32_t first = bounds[blockIdx.x], last = bounds[blockIdx.x + 1];
    Floats d = {};
    if (int(blockIdx.x) < means) {
        d = widen(load_raw(dout + uint64_t(blockIdx.x) * width + at));
        float share = 1.0f / float(last - first);
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
            d.at[j] *= share;
        }
    }
    Raw raw = narrowed(d);
    for (uint32_t row = first + warp_id(); row < last; row += kSumWarps) {
        store_raw(dx + uint64_t(row) * width + at, raw);
    }
}
