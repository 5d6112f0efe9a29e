// Layer normalization of rows of bf16, forward with or without what BERT adds before it, and backward; statistics in f32.
//
// A row is read once and kept in registers: a warp for up to 1,024 columns, four warps above, 16 bytes a lane and access. Gain, shift
// and bias are laid into shared memory once a block, since blocks go on to further rows. The backward pass holds all that gradients
// of gain and shift take: a block adds them up for 32 rows of one segment, in registers, and `add_partials` adds those of a segment.
// Floors: forward 4 bytes a value, with a residual 8; backward 6.
#include "token_dropout.cuh"

namespace layer_norm {

// Several numbers a row that all its lanes see the sums of.
template <int kWarps>
struct RowSum {
    // A float for each warp of a block that has one row.
    float* room;

    __device__ __forceinline__ float operator()(float value) const {
        return kWarps == 1 ? warp_sum(value) : block_sum(value, room);
    }
};

// Where a block and its threads stand: 8 rows of a warp each, or one row of all four warps.
template <int kWarps>
struct Place {
    static constexpr int kRows = kWarps == 1 ? 8 : 1;
    static constexpr int kLanes = kWarps * kWarp;

    __device__ __forceinline__ static int lane() { return kWarps == 1 ? lane_id() : int(threadIdx.x); }
    // Among those of the block.
    __device__ __forceinline__ static int row() { return kWarps == 1 ? warp_id() : 0; }
    __device__ __forceinline__ static int first() { return int(blockIdx.x) * kRows + row(); }
    __device__ __forceinline__ static int step() { return int(gridDim.x) * kRows; }
};

// Numbers of a column each, in shared memory: the lower halves of all vectors, then the upper ones, so that neighbouring lanes
// access neighbouring 16 bytes.
struct Columns {
    float* values;
    int width;

    __device__ __forceinline__ Columns(float* room, int columns) : values(room), width(columns) {}

    __device__ __forceinline__ Columns(float* room, const float* from, int columns) : Columns(room, columns) {
        for (int column = threadIdx.x; column < width; column += blockDim.x) {
            at_column(column) = from[column];
        }
    }

    __device__ __forceinline__ float& at_column(int column) const {
        int within = column % kEight;
        return values[within / 4 * (width / 2) + column / kEight * 4 + within % 4];
    }

    __device__ __forceinline__ void put(int vector, const Floats& own) const {
        store_pack(values + 4 * vector, Pack<float, 4>{{own.at[0], own.at[1], own.at[2], own.at[3]}});
        store_pack(values + width / 2 + 4 * vector, Pack<float, 4>{{own.at[4], own.at[5], own.at[6], own.at[7]}});
    }

    __device__ __forceinline__ Floats at(int vector) const {
        Pack<float, 4> low = load_pack<Pack<float, 4>>(values + 4 * vector);
        Pack<float, 4> high = load_pack<Pack<float, 4>>(values + width / 2 + 4 * vector);
        return Floats{{low.at[0], low.at[1], low.at[2], low.at[3], high.at[0], high.at[1], high.at[2], high.at[3]}};
    }
};

// A lane's vectors of a row; those beyond its end are left out.
template <int kVectors, int kWarps, typename Run>
__device__ __forceinline__ void each(int width, Run run) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        int vector = Place<kWarps>::lane() + i * Place<kWarps>::kLanes;
        if (vector < width / kEight) {
            run(i, vector);
        }
    }
}

struct Norm {
    float* stats;
    float eps;
    int rows;
    int width;
};

// Row of `out` and its statistics, from the row's values.
template <int kVectors, int kWarps>
__device__ __forceinline__ void normalize(bf16* out, const Floats (&x)[kVectors], const Norm& norm, int row, const Columns& gain,
                                          const Columns& shift, const RowSum<kWarps>& row_sum) {
    float sum = 0.0f, squares = 0.0f;
    each<kVectors, kWarps>(norm.width, [&](int i, int) {
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
            sum += x[i].at[j];
        }
    });
    float mean = row_sum(sum) / float(norm.width);
    each<kVectors, kWarps>(norm.width, [&](int i, int) {
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
            squares = fmaf(x[i].at[j] - mean, x[i].at[j] - mean, squares);
        }
    });
    float scale = 1.0f / sqrtf(row_sum(squares) / float(norm.width) + norm.eps);
    if (Place<kWarps>::lane() == 0) {
        store_pack(norm.stats + 2 * uint64_t(row), Pack<float, 2>{{mean, scale}});
    }
    each<kVectors, kWarps>(norm.width, [&](int i, int vector) {
        Floats g = gain.at(vector), s = shift.at(vector), y;
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
            y.at[j] = fmaf((x[i].at[j] - mean) * scale, g.at[j], s.at[j]);
        }
        store_raw(out + uint64_t(row) * norm.width + vector * kEight, narrowed(y));
    });
}

template <int kVectors, int kWarps>
__device__ __forceinline__ void forward(bf16* out, const bf16* x, const float* gain, const float* shift, const Norm& norm) {
    SHARED_DYNAMIC(float, shared);
    __shared__ float warps[kWarp];
    int width = norm.width;
    Columns gains(shared, gain, width), shifts(shared + width, shift, width);
    __syncthreads();
    for (int row = Place<kWarps>::first(); row < norm.rows; row += Place<kWarps>::step()) {
        const bf16* own = x + uint64_t(row) * width;
        Raw raw[kVectors];
        each<kVectors, kWarps>(width, [&](int i, int vector) { raw[i] = load_raw(own + vector * kEight); });
        Floats values[kVectors];
        each<kVectors, kWarps>(width, [&](int i, int) { values[i] = widen(raw[i]); });
        normalize<kVectors, kWarps>(out, values, norm, row, gains, shifts, RowSum<kWarps>{warps});
    }
}

// What stands between a linear layer and its normalization.
struct Before {
    bf16* sum;
    const float* bias;
    const bf16* residual;
    TokenDropout dropout;
};

template <int kVectors, int kWarps>
__device__ __forceinline__ void residual_forward(bf16* out, const Before& before, const float* gain, const float* shift,
                                                 const Norm& norm) {
    SHARED_DYNAMIC(float, shared);
    __shared__ float warps[kWarp];
    int width = norm.width;
    Columns gains(shared, gain, width), shifts(shared + width, shift, width), biases(shared + 2 * width, before.bias, width);
    __syncthreads();
    for (int row = Place<kWarps>::first(); row < norm.rows; row += Place<kWarps>::step()) {
        bf16* sum = before.sum + uint64_t(row) * width;
        const bf16* residual = before.residual + uint64_t(row) * width;
        Raw raw[kVectors], other[kVectors];
        each<kVectors, kWarps>(width, [&](int i, int vector) {
            raw[i] = load_raw(sum + vector * kEight);
            other[i] = load_raw(residual + vector * kEight);
        });
        Floats values[kVectors];
        each<kVectors, kWarps>(width, [&](int i, int vector) {
            values[i] = widen(raw[i]);
            Floats bias = biases.at(vector);
#pragma unroll
            for (int j = 0; j < kEight; ++j) {
                values[i].at[j] += bias.at[j];
            }
        });
        if (before.dropout.keys) {
            TokenMask mask(before.dropout, row, width);
            each<kVectors, kWarps>(width, [&](int i, int vector) { mask.apply(values[i], vector); });
        }
        each<kVectors, kWarps>(width, [&](int i, int vector) {
            Floats added = widen(other[i]);
#pragma unroll
            for (int j = 0; j < kEight; ++j) {
                values[i].at[j] += added.at[j];
            }
            store_raw(sum + vector * kEight, narrowed(values[i]));
        });
        normalize<kVectors, kWarps>(out, values, norm, row, gains, shifts, RowSum<kWarps>{warps});
    }
}

// Where a block's gradients of gain and shift go.
struct Partial {
    // (2 x width)
    float* rows;
    // Shared, 8 x width floats where a warp has a row.
    float* room;
    int width;

    // Row `part` from what each warp has added up, in the order of the warps.
    template <int kVectors, int kWarps>
    __device__ __forceinline__ void store(int part, const Floats (&own)[kVectors]) const {
        float* out = rows + part * width;
        if constexpr (kWarps > 1) {
            each<kVectors, kWarps>(width, [&](int i, int vector) { store_floats(out + vector * kEight, own[i]); });
        } else {
            __syncthreads();
            Columns sums(room + warp_id() * width, width);
            each<kVectors, kWarps>(width, [&](int i, int vector) { sums.put(vector, own[i]); });
            __syncthreads();
            for (int column = threadIdx.x; column < width; column += blockDim.x) {
                float total = 0.0f;
                for (int warp = 0; warp < Place<kWarps>::kRows; ++warp) {
                    total += Columns(room + warp * width, width).at_column(column);
                }
                out[column] = total;
            }
        }
    }
};

// Of rows.x .. rows.y: dx = scale * (g - mean(g) - xhat * mean(g * xhat)) with g = dout * gain, and the column sums of dout * xhat
// and of dout.
template <int kVectors, int kWarps>
__device__ __forceinline__ void backward(bf16* dx, float* partials, const bf16* dout, const bf16* x, const float* stats,
                                         const float* gain, const uint2* chunks, int width) {
    SHARED_DYNAMIC(float, shared);
    __shared__ float warps[kWarp];
    Columns gains(shared, gain, width);
    RowSum<kWarps> row_sum{warps};
    uint2 rows = chunks[blockIdx.x];
    Floats gain_sums[kVectors] = {}, shift_sums[kVectors] = {};
    __syncthreads();
    for (uint32_t row = rows.x + Place<kWarps>::row(); row < rows.y; row += Place<kWarps>::kRows) {
        uint64_t start = uint64_t(row) * width;
        Raw raw[kVectors], gradients[kVectors];
        each<kVectors, kWarps>(width, [&](int i, int vector) {
            raw[i] = load_raw(x + start + vector * kEight);
            gradients[i] = load_raw(dout + start + vector * kEight);
        });
        Pack<float, 2> own = load_pack<Pack<float, 2>>(stats + 2 * uint64_t(row));
        float mean = own.at[0], scale = own.at[1], sum = 0.0f, product = 0.0f;
        each<kVectors, kWarps>(width, [&](int i, int vector) {
            Floats values = widen(raw[i]), d = widen(gradients[i]), factor = gains.at(vector);
#pragma unroll
            for (int j = 0; j < kEight; ++j) {
                float normed = (values.at[j] - mean) * scale, g = d.at[j] * factor.at[j];
                sum += g;
                product = fmaf(g, normed, product);
                gain_sums[i].at[j] = fmaf(d.at[j], normed, gain_sums[i].at[j]);
                shift_sums[i].at[j] += d.at[j];
            }
        });
        sum = row_sum(sum) / float(width);
        product = row_sum(product) / float(width);
        // Widened once more: registers are short.
        each<kVectors, kWarps>(width, [&](int i, int vector) {
            Floats values = widen(raw[i]), d = widen(gradients[i]), factor = gains.at(vector);
#pragma unroll
            for (int j = 0; j < kEight; ++j) {
                d.at[j] = scale * (d.at[j] * factor.at[j] - sum - (values.at[j] - mean) * scale * product);
            }
            store_raw(dx + start + vector * kEight, narrowed(d));
        });
    }
    Partial partial = {partials + uint64_t(blockIdx.x) * 2 * width, shared + width, width};
    partial.store<kVectors, kWarps>(0, gain_sums);
    partial.store<kVectors, kWarps>(1, shift_sums);
}

}  // namespace layer_norm

// out (rows x width) = (x - mean) / sqrt(variance + eps) * gain + shift, stats (rows x 2): mean and 1 / deviation. width: a multiple
// of 8, at most the number in the name. grid: any; 256 threads, 128 above 1,024 columns. Shared memory: 2 floats a column.
extern "C" __global__ void __launch_bounds__(256) layer_norm_forward_768(bf16* out, float* stats, const bf16* x, const float* gain,
                                                                         const float* shift, float eps, int rows, int width) {
    layer_norm::forward<3, 1>(out, x, gain, shift, layer_norm::Norm{stats, eps, rows, width});
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_forward_1024(bf16* out, float* stats, const bf16* x, const float* gain,
                                                                          const float* shift, float eps, int rows, int width) {
    layer_norm::forward<4, 1>(out, x, gain, shift, layer_norm::Norm{stats, eps, rows, width});
}
extern "C" __global__ void __launch_bounds__(128) layer_norm_forward_4096(bf16* out, float* stats, const bf16* x, const float* gain,
                                                                          const float* shift, float eps, int rows, int width) {
    layer_norm::forward<4, 4>(out, x, gain, shift, layer_norm::Norm{stats, eps, rows, width});
}

// sum (rows x width) becomes dropout(sum + bias) + residual, and out and stats its normalization; keys, threshold, scale, seed and
// round as dropout_by_token, keys null where nothing is dropped. Shared memory: 3 floats a column. The rest as layer_norm_forward.
extern "C" __global__ void __launch_bounds__(256, 3) residual_norm_forward_768(bf16* out, float* stats, bf16* sum,
                                                                            const float* bias, const bf16* residual,
                                                                            const float* gain, const float* shift, float eps,
                                                                            int rows, int width, const uint32_t* keys,
                                                                            uint32_t threshold, float scale, uint64_t seed,
                                                                            const uint64_t* round) {
    layer_norm::Before before = {sum, bias, residual, {keys, threshold, scale, seed, keys ? uint32_t(*round) : 0}};
    layer_norm::residual_forward<3, 1>(out, before, gain, shift, layer_norm::Norm{stats, eps, rows, width});
}
extern "C" __global__ void __launch_bounds__(256, 2) residual_norm_forward_1024(bf16* out, float* stats, bf16* sum,
                                                                             const float* bias, const bf16* residual,
                                                                             const float* gain, const float* shift, float eps,
                                                                             int rows, int width, const uint32_t* keys,
                                                                             uint32_t threshold, float scale, uint64_t seed,
                                                                             const uint64_t* round) {
    layer_norm::Before before = {sum, bias, residual, {keys, threshold, scale, seed, keys ? uint32_t(*round) : 0}};
    layer_norm::residual_forward<4, 1>(out, before, gain, shift, layer_norm::Norm{stats, eps, rows, width});
}
extern "C" __global__ void __launch_bounds__(128, 4) residual_norm_forward_4096(bf16* out, float* stats, bf16* sum,
                                                                             const float* bias, const bf16* residual,
                                                                             const float* gain, const float* shift, float eps,
                                                                             int rows, int width, const uint32_t* keys,
                                                                             uint32_t threshold, float scale, uint64_t seed,
                                                                             const uint64_t* round) {
    layer_norm::Before before = {sum, bias, residual, {keys, threshold, scale, seed, keys ? uint32_t(*round) : 0}};
    layer_norm::residual_forward<4, 4>(out, before, gain, shift, layer_norm::Norm{stats, eps, rows, width});
}

// dx (rows x width) = the gradient of x, stats as layer_norm_forward left them; partials[chunk] (2 x width) = column sums of dout * xhat
// and of dout over the rows chunks[chunk].x .. chunks[chunk].y. grid: chunks. Shared memory: a float a column, 9 up to 1,024 columns.
// The rest as there.
extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_backward_768(bf16* dx, float* partials, const bf16* dout,
                                                                             const bf16* x, const float* stats, const float* gain,
                                                                             const uint2* chunks, int width) {
    layer_norm::backward<3, 1>(dx, partials, dout, x, stats, gain, chunks, width);
}
extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_backward_1024(bf16* dx, float* partials, const bf16* dout,
                                                                              const bf16* x, const float* stats, const float* gain,
                                                                              const uint2* chunks, int width) {
    layer_norm::backward<4, 1>(dx, partials, dout, x, stats, gain, chunks, width);
}
extern "C" __global__ void __launch_bounds__(128, 3) layer_norm_backward_4096(bf16* dx, float* partials, const bf16* dout,
                                                                              const bf16* x, const float* stats, const float* gain,
                                                                              const uint2* chunks, int width) {
    layer_norm::backward<4, 4>(dx, partials, dout, x, stats, gain, chunks, width);
}
