// What reaches a row of J in parts: sums of partial rows, and of rows of dout, by segment. Floor: 4 bytes a value of every partial row,
// 2 of every row of dout.
#include "jacobian.cuh"
#include "row_sums.cuh"

// The sum of value(i) for i from `first` to `last`, on the first of 32 warps, for a column a lane: the warps share out the i, and their
// sums are added in order. 32 x 33 floats of shared memory.
template <typename Value>
__device__ __forceinline__ float sum_over_warps(uint32_t first, uint32_t last, bool wanted, Value value) {
    __shared__ float sums[kWarp][kWarp + 1];
    float sum = 0.0f;
    if (wanted) {
#pragma unroll 8
        for (uint32_t i = first + warp_id(); i < last; i += kWarp) {
            sum += value(i);
        }
    }
    sums[warp_id()][lane_id()] = sum;
    __syncthreads();
    float total = 0.0f;
    if (warp_id() == 0) {
        for (int warp = 0; warp < kWarp; ++warp) {
            total += sums[warp][lane_id()];
        }
    }
    return total;
}

// rows[offsets[s]..] (width; f32, or bf16 if narrow) = or += the sum of the partial rows bounds[s]..bounds[s + 1] (each width, end to
// end). grid: (tiles of 32 columns, sums); 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) add_partials(void* rows, const float* partials, const uint32_t* bounds,
                                                                const uint64_t* offsets, const uint32_t* add, int width,
                                                                int narrow) {
    int own = int(blockIdx.y), column = int(blockIdx.x) * kWarp + lane_id();
    float total = sum_over_warps(bounds[own], bounds[own + 1], column < width,
                                 [&](uint32_t part) { return partials[uint64_t(part) * width + column]; });
    if (warp_id() == 0 && column < width) {
        JacobianRow(rows, narrow, offsets[own], add[own] != 0).put(column, total);
    }
}

// partials[chunk] (width) = column sums of the rows chunks[chunk].x .. chunks[chunk].y of dout (rows x width, a multiple of 8).
// grid: (chunks, tiles of 256 columns).
extern "C" __global__ void __launch_bounds__(256) bias_partials(float* partials, const bf16* dout, const uint2* chunks, int width) {
    __shared__ SumRoom room;
    uint2 rows = chunks[blockIdx.x];
    float total = column_of_sum(
        dout, width, rows.x, rows.y, [](uint32_t row) { return row; }, [](uint32_t) { return 1.0f; }, room);
    int column = int(blockIdx.y) * kSumTile + int(threadIdx.x);
    if (column < width) {
        partials[uint64_t(blockIdx.x) * width + column] = total;
    }
}

// gradients[offsets[s]..] (width; f32, or bf16 if narrow) = or += column sums of rows starts[s]..ends[s] of dout (rows x width).
// grid: (tiles of 32 columns, segments); 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) bias_gradients(void* gradients, const bf16* dout, const uint32_t* starts,
                                                                  const uint32_t* ends, const uint64_t* offsets,
                                                                  const uint32_t* add, int width, int narrow) {
    int segment = int(blockIdx.y), column = int(blockIdx.x) * kWarp + lane_id();
    float total = sum_over_warps(starts[segment], ends[segment], column < width,
                                 [&](uint32_t row) { return to_float(dout[uint64_t(row) * pitch_of(width) + column]); });
    if (warp_id() == 0 && column < width) {
        JacobianRow(gradients, narrow, offsets[segment], add[segment] != 0).put(column, total);
    }
}
