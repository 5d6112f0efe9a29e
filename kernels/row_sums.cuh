// Sums of a few rows of bf16 out of many: a block a sum and 256 columns, whose eight warps share out the rows.
#pragma once

#include "vectors.cuh"

constexpr int kSumTile = kWarp * kEight;
constexpr int kSumWarps = 8;

// A block's shared memory.
struct SumRoom {
    float sums[kSumWarps][kEight][kWarp + 1];
};

// This thread's column, blockIdx.y * 256 + threadIdx.x, of the sum of factor_of(i) * row row_of(i) of x (rows x width) for i from
// `first` to `last`. Warps take every eighth row, and their sums are added in order. A row whose factor is zero is not read.
template <typename RowOf, typename FactorOf>
__device__ __forceinline__ float column_of_sum(const bf16* x, int width, uint32_t first, uint32_t last, RowOf row_of,
                                               FactorOf factor_of, SumRoom& room) {
    constexpr int kAtOnce = 4;
    int at = int(blockIdx.y) * kSumTile + lane_id() * kEight;
    float sum[kEight] = {};
    if (at < width) {
        for (uint32_t start = first + warp_id(); start < last; start += kAtOnce * kSumWarps) {
            Raw raw[kAtOnce];
            float factor[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                uint32_t own = start + i * kSumWarps;
                factor[i] = own < last ? factor_of(own) : 0.0f;
                if (factor[i] != 0.0f) {
                    raw[i] = load_raw(x + uint64_t(row_of(own)) * width + at);
                }
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (factor[i] != 0.0f) {
                    Floats values = widen(raw[i]);
#pragma unroll
                    for (int j = 0; j < kEight; ++j) {
                        sum[j] = fmaf(factor[i], values.at[j], sum[j]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
        room.sums[warp_id()][j][lane_id()] = sum[j];
    }
    __syncthreads();
    int column = int(threadIdx.x);
    float total = 0.0f;
    for (int warp = 0; warp < kSumWarps; ++warp) {
        total += room.sums[warp][column % kEight][column / kEight];
    }
    return total;
}
