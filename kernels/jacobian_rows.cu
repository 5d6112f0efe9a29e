// What reaches a row of J in parts: the sums of a segment's partial rows. Floor: 4 bytes a value of every partial row.
#include "jacobian.cuh"
#include "row_sums.cuh"

// rows[offsets[s]..] (width; f32, or bf16 if narrow) = or += the sum of the partial rows bounds[s]..bounds[s + 1] (each width, end to
// end).
// grid: (tiles of 32 columns, sums); 1024 threads: 32 warps share out the partial rows, and their sums are added in order.
extern "C" __global__ void __launch_bounds__(1024) add_partials(void* rows, const float* partials, const uint32_t* bounds,
                                                                const uint64_t* offsets, const uint32_t* add, int width,
                                                                int narrow) {
    __shared__ float sums[kWarp][kWarp + 1];
    int own = int(blockIdx.y), column = int(blockIdx.x) * kWarp + lane_id();
    uint32_t end = bounds[own + 1];
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (uint32_t part = bounds[own] + warp_id(); part < end; part += kWarp) {
            sum += partials[uint64_t(part) * width + column];
        }
    }
    sums[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() == 0 && column < width) {
        float total = 0.0f;
        for (int warp = 0; warp < kWarp; ++warp) {
            total += sums[warp][lane_id()];
        }
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
// grid: (tiles of 32 columns, segments); 1024 threads; 32 x 33 floats of shared memory, summed warp by warp.
extern "C" __global__ void __launch_bounds__(1024) bias_gradients(void* gradients, const bf16* dout, const uint32_t* starts,
                                                                       const uint32_t* ends, const uint64_t* offsets,
                                                                       const uint32_t* add, int width, int narrow) {
    __shared__ float sums[kWarp][kWarp + 1];
    int segment = int(blockIdx.y), column = int(blockIdx.x) * kWarp + lane_id();
    uint32_t end = ends[segment];
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (uint32_t row = starts[segment] + warp_id(); row < end; row += kWarp) {
            sum += to_float(dout[uint64_t(row) * pitch_of(width) + column]);
        }
    }
    sums[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() == 0 && column < width) {
        float total = 0.0f;
        for (int warp = 0; warp < kWarp; ++warp) {
            total += sums[warp][lane_id()];
        }
        JacobianRow(gradients, narrow, offsets[segment], add[segment] != 0).put(column, total);
    }
}
