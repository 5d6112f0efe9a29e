// Rows scaled to length 1, and the gradient of that: a warp a row, lanes along the columns, sums in f32.
//
// Rows of x and dx are bf16 and lie pitch_of(width) apart, what pads dx is zero; those of the unit vectors are f32 without gaps. No shared memory.
// Floor: 2 bytes a value read and 4 written, or 6 read and 2 written; the second pass over a row comes from the cache.
#include "common.cuh"

namespace unit_rows {

constexpr int kWarps = 8;
// Rows that are shorter have no direction: they become zero, and so does their gradient.
constexpr float kShortest = 1e-12f;

__device__ __forceinline__ int row_of_warp() { return int(blockIdx.x) * kWarps + warp_id(); }

// 1 / |x|, or 0 without a direction; NaN where x is not finite.
__device__ __forceinline__ float inverse(float square) {
    float norm = sqrtf(square);
    return norm < kShortest ? 0.0f : 1.0f / norm;
}

}  // namespace unit_rows

// out (rows x width) f32 = x / |x|. grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) unit_rows_forward(float* out, const bf16* x, int rows, int width) {
    using namespace unit_rows;
    int row = row_of_warp();
    if (row >= rows) {
        return;
    }
    const bf16* own = x + uint64_t(row) * pitch_of(width);
    float square = 0.0f;
    for (int at = lane_id(); at < width; at += kWarp) {
        float value = to_float(own[at]);
        square = fmaf(value, value, square);
    }
    float factor = inverse(warp_sum(square));
    for (int at = lane_id(); at < width; at += kWarp) {
        out[uint64_t(row) * width + at] = to_float(own[at]) * factor;
    }
}

// dx (rows x width) = (dout - u <u, dout>) / |x| for u = x / |x|; dout f32. grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) unit_rows_backward(bf16* dx, const float* dout, const bf16* x, int rows,
                                                                     int width) {
    using namespace unit_rows;
    int row = row_of_warp();
    if (row >= rows) {
        return;
    }
    const bf16* own = x + uint64_t(row) * pitch_of(width);
    const float* d = dout + uint64_t(row) * width;
    float square = 0.0f, product = 0.0f;
    for (int at = lane_id(); at < width; at += kWarp) {
        float value = to_float(own[at]);
        square = fmaf(value, value, square);
        product = fmaf(value, d[at], product);
    }
    float factor = inverse(warp_sum(square));
    float along = warp_sum(product) * factor * factor;
    for (int at = lane_id(); at < pitch_of(width); at += kWarp) {
        float slope = at < width ? fmaf(-along, to_float(own[at]), d[at]) * factor : 0.0f;
        dx[uint64_t(row) * pitch_of(width) + at] = from_float<bf16>(slope);
    }
}
