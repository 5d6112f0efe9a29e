// What the kernels of attention's backward pass share: row products of outputs and their gradients, and what becomes of products of
// keys and queries.
#pragma once

#include "attention.cuh"

namespace attention {

// Of eight values and eight.
__device__ __forceinline__ float inner(const Vector& a, const Vector& b) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum = fmaf(bits_of<float>(a.at[i] << 16), bits_of<float>(b.at[i] << 16), sum);
        sum = fmaf(bits_of<float>(a.at[i] & 0xffff0000u), bits_of<float>(b.at[i] & 0xffff0000u), sum);
    }
    return sum;
}

__device__ __forceinline__ Vector load_vector(const bf16* from) {
    return bits_of<Vector>(load_pack<Pack<bf16, kVector>>(from));
}

// D of the rows of a stage: `load` and `finish` apart, so that what is between hides the latency.
template <int DIM>
struct RowProducts {
    static constexpr int kVectors = DIM / kVector;
    static constexpr int kPasses = kMoving * kVectors / kThreads;
    Vector out[kPasses];
    Vector dout[kPasses];

    static constexpr int kDown = kThreads / kVectors;

    // Rows from the first on, of which `rows` are there.
    __device__ __forceinline__ void load(const bf16* o, int o_ld, const bf16* d, int d_ld, int rows) {
        int row = int(threadIdx.x) / kVectors, column = int(threadIdx.x) % kVectors * kVector;
        o += uint64_t(row) * o_ld + column;
        d += uint64_t(row) * d_ld + column;
        uint64_t o_step = uint64_t(kDown) * o_ld, d_step = uint64_t(kDown) * d_ld;
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            out[pass] = dout[pass] = Vector{};
            if (row + pass * kDown < rows) {
                out[pass] = load_vector(o + pass * o_step);
                dout[pass] = load_vector(d + pass * d_step);
            }
        }
    }

    __device__ __forceinline__ void finish(float* products) const {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            float sum = inner(out[pass], dout[pass]);
#pragma unroll
            for (int step = 1; step < kVectors; step *= 2) {
                sum += __shfl_xor_sync(kAll, sum, step);
            }
            if (int(threadIdx.x) % kVectors == 0) {
                products[int(threadIdx.x) / kVectors + pass * kDown] = sum;
            }
        }
    }
};

// What the backward kernels read and write, from the first row and column of one head and sequence on.
struct Matrices {
    const bf16* q;
    // Keys, then values.
    const bf16* kv;
    const bf16* dout;
    const bf16* out;
    const float* log_sums;
    int q_ld, kv_ld, dout_ld, out_ld, sums_ld;
};

template <int TALL, int TILES, typename F>
__device__ __forceinline__ void each(float (&values)[TALL][TILES][4], F f) {
#pragma unroll
    for (int i = 0; i < TALL; ++i) {
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                values[i][j][k] = f(i, j, k);
            }
        }
    }
}

template <int TALL, int TILES, int STEPS>
__device__ __forceinline__ void as_lefts(uint32_t (&left)[STEPS][TALL][4], const float (&sums)[TALL][TILES][4]) {
    static_assert(2 * STEPS == TILES, "16 columns a step");
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            as_left(left[k][i], sums[i], k);
        }
    }
}

// The two of a stage's values that belong to columns 2 t and 2 t + 1 of tile j.
__device__ __forceinline__ Pack<float, 2> pair(const float* values, int j) {
    return load_pack<Pack<float, 2>>(values + 8 * j + lane_id() % 4 * 2);
}

// Products of a warp's keys from `row` on (of `keys`) and queries become weights; those of rows behind the last key are zero.
// log_sums: of the queries, as exponents of 2.
template <int TALL, int TILES>
__device__ __forceinline__ void weigh_by_keys(float (&scores)[TALL][TILES][4], const float* log_sums, int row, int keys, float slope) {
    Pack<float, 2> sums[TILES];
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
        sums[j] = pair(log_sums, j);
    }
    each(scores, [&](int i, int j, int k) { return exp2_fast(fmaf(scores[i][j][k], slope, -sums[j].at[k % 2])); });
    if (row + 16 * TALL > keys) {
        each(scores,
             [&](int i, int j, int k) { return row + 16 * i + lane_id() / 4 + 8 * (k / 2) < keys ? scores[i][j][k] : 0.0f; });
    }
}

// Element k of tile j, of weights that are left operands.
template <int TALL, int STEPS>
__device__ __forceinline__ float weight_of(const uint32_t (&weights)[STEPS][TALL][4], int i, int j, int k) {
    uint32_t both = weights[j / 2][i][j % 2 * 2 + k / 2];
    return bits_of<float>(k % 2 ? both & 0xffff0000u : both << 16);
}

// kept: as draw_by_keys.
template <int TALL>
__device__ __forceinline__ bool keeps(const uint32_t (&kept)[TALL], int i, int j, int k) {
    return kept[i] >> (4 * j + k) & 1;
}

// Products of values and dO become dS = P (M dO V^T - D). products: D of the queries; scale: of what is kept.
template <bool DROPS, int TALL, int TILES, int STEPS>
__device__ __forceinline__ void slopes_by_keys(float (&scores)[TALL][TILES][4], const uint32_t (&weights)[STEPS][TALL][4],
                                               const uint32_t (&kept)[TALL], const float* products, float scale) {
    Pack<float, 2> means[TILES];
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
        means[j] = pair(products, j);
    }
    each(scores, [&](int i, int j, int k) {
        float slope = scores[i][j][k];
        if (DROPS) {
            slope = keeps(kept, i, j, k) ? slope * scale : 0.0f;
        }
        return weight_of(weights, i, j, k) * (slope - means[j].at[k % 2]);
    });
}

// Of a warp's queries, TALL times 16: what dQ is made of, and dQ before it is scaled.
template <int DIM, int TALL, bool DROPS>
struct QueryRows {
    float sums[TALL][DIM / 8][4];
    // Of rows g and g + 8: log-sums as exponents of 2, D.
    float log_sums[TALL][2];
    float products[TALL][2];
    QueryWords words[TALL];

    // Rows from `row` on, of which `rows` are there; dout: a tile that has them from the first on.
    __device__ __forceinline__ QueryRows(const Matrices& at, const bf16* dout, const Dropout& dropout, int row, int rows,
                                         uint32_t packed, int keys) {
        clear(sums);
        int group = lane_id() / 4, thread = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int own = row + 16 * i + 8 * half + group;
                bool there = own < rows;
                log_sums[i][half] = there ? at.log_sums[uint64_t(own) * at.sums_ld] * kLog2E : INFINITY;
                float sum = 0.0f;
#pragma unroll
                for (int vector = thread; vector < Tile<DIM>::kVectors; vector += 4) {
                    if (there) {
                        const bf16* out = at.out + uint64_t(own) * at.out_ld + vector * kVector;
                        sum += inner(load_vector(out), load_vector(dout + Tile<DIM>::place(own, vector)));
                    }
                }
                sum += __shfl_xor_sync(kAll, sum, 1);
                sum += __shfl_xor_sync(kAll, sum, 2);
                products[i][half] = sum;
            }
            if (DROPS) {
                int drawn = row + 16 * i + group + 8 * (thread % 2);
                words[i] = words_of(dropout, packed + uint32_t(min(drawn, rows - 1)), keys);
            }
        }
    }

    // Products of queries and keys, and of dO and values, become dS. Keys from number `key` of the sequence on, of which `left` are
    // there.
    template <int TILES>
    __device__ __forceinline__ void slopes_by_queries(float (&slopes)[TALL][TILES][4], const float (&weights)[TALL][TILES][4],
                                                      const Dropout& dropout, int key, int left, float slope) const {
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            uint32_t kept[2];
            if (DROPS) {
                draw_by_queries<TILES>(kept, dropout, words[i], key);
            }
#pragma unroll
            for (int j = 0; j < TILES; ++j) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    bool there = 8 * j + lane_id() % 4 * 2 + k % 2 < left;
                    float weight = there ? exp2_fast(fmaf(weights[i][j][k], slope, -log_sums[i][k / 2])) : 0.0f;
                    float gradient = slopes[i][j][k];
                    if (DROPS) {
                        gradient = kept[k / 2] >> (4 * j + k % 2) & 1 ? gradient * dropout.scale : 0.0f;
                    }
                    slopes[i][j][k] = weight * (gradient - products[i][k / 2]);
                }
            }
        }
    }
};

}  // namespace attention
