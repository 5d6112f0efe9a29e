// What the kernels of attention share: tiles of rows in shared memory, masks of dropout, wide stores of results.
#pragma once

#include "mma.cuh"

// Work of one block on one head. Rows are numbers of packed rows; `start` is the first of those that the block owns.
struct AttentionBlock {
    uint32_t query_first;
    uint32_t query_end;
    uint32_t key_first;
    uint32_t key_end;
    uint32_t start;
};

// What kernels are given of dropout, as their last arguments, and what it becomes.
#define ATTENTION_DROPOUT_TAKES \
    const uint32_t *tokens, uint32_t threshold, float kept_scale, uint64_t seed, const uint64_t *round, uint32_t layer
#define ATTENTION_DROPOUT_GIVES \
    attention::LayerDropout { tokens, threshold, kept_scale, seed, round, layer }

namespace attention {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
// Rows of a tile that moves past those that a block owns, keys or queries.
constexpr int kMoving = 64;
constexpr float kLog2E = 1.4426950408889634f;

// Values in one 16-byte vector.
constexpr int kVector = 8;
typedef Pack<uint32_t, 4> Vector;

// A tile of rows of DIM values. Vector v of row r lies at v ^ (r % 8), or v ^ (r / 2 % 4) where rows are 64 bytes: 8 rows of an
// ldmatrix are in different banks, read along the rows or across them. With rows of 128 bytes this is the 128-byte swizzle of a
// warpgroup's products.
template <int DIM>
struct Tile {
    static constexpr int kVectors = DIM / kVector;
    static_assert(kVectors == 8 || kVectors == 4, "rows of 128 or 64 bytes");

    __device__ static __forceinline__ int swizzle(int row) { return kVectors == 8 ? row % 8 : row / 2 % 4; }

    __device__ static __forceinline__ int place(int row, int vector) { return row * DIM + (vector ^ swizzle(row)) * kVector; }

    // Starts copying the first `rows` rows from `source`, `ld` elements apart; zeros behind them. By the first kThreads threads.
    template <int kRows>
    __device__ static __forceinline__ void fill(bf16* tile, const bf16* source, int ld, int rows) {
        constexpr int kDown = kThreads / kVectors;
        int row = int(threadIdx.x) / kVectors, vector = int(threadIdx.x) % kVectors;
        const bf16* from = source + uint64_t(row) * ld + vector * kVector;
        bf16* to = tile + place(row, vector);
        uint64_t step = uint64_t(kDown) * ld;
#pragma unroll
        for (int index = 0; index < kRows / kDown; ++index) {
            // Nothing is read for what lies behind the rows.
            copy_async_16(to + index * kDown * DIM, from + index * step, row + index * kDown < rows ? int(sizeof(Vector)) : 0);
        }
    }

    // Where this lane's row begins for an ldmatrix of 16 rows from `row` and 16 columns from `column` (both multiples of 16). The
    // second of the four matrices lies below the first, or (kBeside) right of it.
    template <bool kBeside>
    __device__ static __forceinline__ const bf16* lane_row(const bf16* tile, int row, int column) {
        int below = kBeside ? lane_id() / 16 : lane_id() / 8 % 2, right = kBeside ? lane_id() / 8 % 2 : lane_id() / 16;
        int own = lane_id() % 8 + 8 * below;
        return tile + (row + own) * DIM + ((column / kVector) ^ (right ^ swizzle(own))) * kVector;
    }

    // mma's a: the tile's rows are the product's rows, or (transposed) its inner dimension.
    __device__ static __forceinline__ void left(uint32_t (&a)[4], const bf16* tile, int row, int column) {
        ldmatrix(a, lane_row<false>(tile, row, column));
    }
    __device__ static __forceinline__ void left_transposed(uint32_t (&a)[4], const bf16* tile, int row, int column) {
        ldmatrix_transposed(a, lane_row<true>(tile, row, column));
    }

    // Two of mma's b, for 16 of the product's columns: the tile's rows are these, or (transposed) the inner dimension.
    __device__ static __forceinline__ void right(uint32_t (&b)[2][2], const bf16* tile, int row, int column) {
        uint32_t r[4];
        ldmatrix(r, lane_row<true>(tile, row, column));
        split(b, r);
    }
    __device__ static __forceinline__ void right_transposed(uint32_t (&b)[2][2], const bf16* tile, int row, int column) {
        uint32_t r[4];
        ldmatrix_transposed(r, lane_row<false>(tile, row, column));
        split(b, r);
    }

    __device__ static __forceinline__ void split(uint32_t (&b)[2][2], const uint32_t (&r)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            b[i / 2][i % 2] = r[i];
        }
    }
};

// sums[i] (16 x 8 WIDE) += left[i] (16 x 16) right, for TALL tiles of 16 rows; right(b, column) loads 16 of its columns.
template <int TALL, int WIDE, typename Right>
__device__ __forceinline__ void multiply(float (&sums)[TALL][WIDE][4], const uint32_t (&left)[TALL][4], Right right) {
#pragma unroll
    for (int j = 0; j < WIDE / 2; ++j) {
        uint32_t b[2][2];
        right(b, 16 * j);
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            mma_bf16(sums[i][2 * j], left[i], b[0]);
            mma_bf16(sums[i][2 * j + 1], left[i], b[1]);
        }
    }
}

template <int TALL, int WIDE>
__device__ __forceinline__ void clear(float (&sums)[TALL][WIDE][4]) {
#pragma unroll
    for (int i = 0; i < TALL; ++i) {
#pragma unroll
        for (int j = 0; j < WIDE; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                sums[i][j][k] = 0.0f;
            }
        }
    }
}

// A product's results in columns 16 step .. 16 step + 16, as the next product's a.
template <int WIDE>
__device__ __forceinline__ void as_left(uint32_t (&a)[4], const float (&sums)[WIDE][4], int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float(&from)[4] = sums[2 * step + i / 2];
        a[i] = bf16_pair(from[i % 2 * 2], from[i % 2 * 2 + 1]);
    }
}

// Word j of thread t of four becomes word t of thread j.
__device__ __forceinline__ void transpose_of_four(uint32_t (&words)[4]) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        bool upper = (lane_id() & bit) != 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if ((j & bit) == 0) {
                uint32_t got = __shfl_xor_sync(kAll, upper ? words[j] : words[j | bit], bit);
                words[j] = upper ? got : words[j];
                words[j | bit] = upper ? words[j | bit] : got;
            }
        }
    }
}

// Rows `row` (of `rows`) to row + 15 of `out` become sums * factors; factors[h] is that of row g + 8 h.
template <int WIDE>
__device__ __forceinline__ void store_rows(bf16* out, int ld, int row, int rows, const float (&sums)[WIDE][4],
                                           const float (&factors)[2]) {
    int group = lane_id() / 4, thread = lane_id() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int own = row + group + 8 * half;
#pragma unroll
        for (int first = 0; first < WIDE; first += 4) {
            Vector words;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float* pair = sums[first + j] + 2 * half;
                words.at[j] = bf16_pair(pair[0] * factors[half], pair[1] * factors[half]);
            }
            transpose_of_four(words.at);
            if (own < rows) {
                store_pack(out + uint64_t(own) * ld + 8 * (first + thread), bits_of<Pack<bf16, kVector>>(words));
            }
        }
    }
}

// What masks of one head are drawn from.
struct Dropout {
    // (queries x 3) task, example and position of packed query rows.
    const uint32_t* tokens;
    // Words below it drop.
    uint32_t threshold;
    // 1 / (1 - probability)
    float scale;
    // Of the layer and head.
    uint64_t seed;
    uint32_t round;
};

// The same of a layer, as kernels are given it; those whose names do not end in _drop read none of it. scale is 1 there.
struct LayerDropout {
    const uint32_t* tokens;
    uint32_t threshold;
    float scale;
    uint64_t seed;
    const uint64_t* round;
    uint32_t layer;

    // Layer and head name the site, as `Keyed::at_site` of ops/philox.rs.
    __device__ __forceinline__ Dropout of_head(uint32_t head) const {
        uint32_t site = ((layer << 8 | head) + 1) * 0xC2B2AE35u;
        return Dropout{tokens, threshold, scale, seed ^ uint64_t(site) << 32, uint32_t(*round)};
    }
};

// A query's words: four keys share block first + key / 4.
struct QueryWords {
    uint32_t task;
    uint32_t example;
    uint32_t first;
};

__device__ __forceinline__ QueryWords words_of(const Dropout& dropout, uint32_t row, int keys) {
    const uint32_t* token = dropout.tokens + 3 * uint64_t(row);
    return QueryWords{token[0], token[1], token[2] * uint32_t((keys + 3) / 4)};
}

// Bit k: whether the query keeps key 4 block + k.
__device__ __forceinline__ uint32_t kept_of_four(const Dropout& dropout, const QueryWords& query, uint32_t block) {
    Words words = keyed_block(dropout.seed, kStreamAttentionDropout, dropout.round, query.task, query.example, query.first + block);
    uint32_t kept = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        kept |= uint32_t(words.at[k] >= dropout.threshold) << k;
    }
    return kept;
}

// Masks of a product of 16 queries (rows) and 8 TILES keys (columns) from `key` on: bit 4 j + c of kept[h] is for the element
// (g + 8 h, 8 j + 2 t + c). Neighbouring threads need the same words of two rows: the even one draws row g, the odd one g + 8.
// `query` is the row that this lane draws.
template <int TILES>
__device__ __forceinline__ void draw_by_queries(uint32_t (&kept)[2], const Dropout& dropout, const QueryWords& query, int key) {
    int thread = lane_id() % 4, odd = thread % 2;
    uint32_t own = 0;
#pragma unroll 2
    for (int j = 0; j < TILES; ++j) {
        own |= kept_of_four(dropout, query, uint32_t(key / 4 + 2 * j + thread / 2)) << (4 * j);
    }
    uint32_t other = __shfl_xor_sync(kAll, own, 1);
    kept[0] = (odd ? other : own) >> (2 * odd);
    kept[1] = (odd ? own : other) >> (2 * odd);
}

// The mask of a product of 16 keys from `key` on (rows) and 8 TILES queries (columns): bit 4 j + 2 h + c is for the element
// (g + 8 h, 8 j + 2 t + c). The four lanes whose keys lie in the same blocks of four draw one of the four each.
template <int TILES>
__device__ __forceinline__ uint32_t draw_by_keys(const Dropout& dropout, const QueryWords* queries, int key) {
    int group = lane_id() / 4, thread = lane_id() % 4, turn = group % 4;
    uint32_t own = 0, kept = 0;
#pragma unroll 2
    for (int j = 0; j < TILES; ++j) {
        uint32_t block = uint32_t(key / 4 + group / 4 + 2 * (turn / 2));
        own |= kept_of_four(dropout, queries[8 * j + 2 * thread + turn % 2], block) << (4 * j);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        uint32_t drawn = __shfl_sync(kAll, own, (group & 4) * 4 + 4 * i + thread) >> turn;
        kept |= (drawn & 0x11111111u) << i;
    }
    return kept;
}

// Rows of an attention's output as they grow with the keys: the running peak, total and weighted sum of values, in f32. Each of
// TALL tiles has 16 rows in a warp, laid out as mma.sync and a warpgroup's products leave them.
template <int DIM, int TALL, bool DROPS>
struct OnlineSoftmax {
    static constexpr int kTiles = kMoving / 8;

    float sums[TALL][DIM / 8][4];
    // Of rows g and g + 8; peaks of products before they are scaled, totals of this lane's columns.
    float peaks[TALL][2];
    float totals[TALL][2];
    QueryWords words[TALL];

    __device__ __forceinline__ OnlineSoftmax() {
        clear(sums);
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            peaks[i][0] = peaks[i][1] = -INFINITY;
            totals[i][0] = totals[i][1] = 0.0f;
        }
    }

    // What the masks of this warp's rows are drawn from: rows from `row` on of `rows`, of which the first is row `start` of all.
    __device__ __forceinline__ void name(const Dropout& dropout, uint32_t start, int row, int rows, int keys) {
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            int drawn = row + 16 * i + lane_id() / 4 + 8 * (lane_id() % 2);
            words[i] = words_of(dropout, start + uint32_t(min(drawn, rows - 1)), keys);
        }
    }

    // Columns from `left` on are beyond the keys.
    __device__ __forceinline__ static void mask(float (&scores)[TALL][kTiles][4], int left) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                bool beyond = 8 * j + lane_id() % 4 * 2 + k % 2 >= left;
#pragma unroll
                for (int i = 0; i < TALL; ++i) {
                    scores[i][j][k] = beyond ? -INFINITY : scores[i][j][k];
                }
            }
        }
    }

    // Products become weights under the new peak of their row, what was summed under the old one is brought down to it.
    // slope: what a product is multiplied by, to be an exponent of 2.
    __device__ __forceinline__ void weigh(float (&scores)[TALL][kTiles][4], float slope) {
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float peak = peaks[i][half];
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
                    peak = fmaxf(peak, fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
                }
                peak = fmaxf(peak, __shfl_xor_sync(kAll, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(kAll, peak, 2));
                float correction = exp2_fast((peaks[i][half] - peak) * slope), offset = peak * slope, total = 0.0f;
                peaks[i][half] = peak;
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
#pragma unroll
                    for (int k = 2 * half; k < 2 * half + 2; ++k) {
                        scores[i][j][k] = exp2_fast(fmaf(scores[i][j][k], slope, -offset));
                        total += scores[i][j][k];
                    }
                }
                totals[i][half] = fmaf(totals[i][half], correction, total);
#pragma unroll
                for (int d = 0; d < DIM / 8; ++d) {
                    sums[i][d][2 * half] *= correction;
                    sums[i][d][2 * half + 1] *= correction;
                }
            }
        }
    }

    // The scale of what is kept is left to the end.
    __device__ __forceinline__ void drop(float (&scores)[TALL][kTiles][4], const Dropout& dropout, int key) const {
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            uint32_t kept[2];
            draw_by_queries<kTiles>(kept, dropout, words[i], key);
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    scores[i][j][k] = kept[k / 2] >> (4 * j + k % 2) & 1 ? scores[i][j][k] : 0.0f;
                }
            }
        }
    }

    // Rows from `row` on of `rows`; scale: of products.
    __device__ __forceinline__ void finish(bf16* out, int out_ld, float* log_sums, int sums_ld, int row, int rows, float scale,
                                           float kept_scale) const {
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            float factors[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float total = totals[i][half];
                total += __shfl_xor_sync(kAll, total, 1);
                total += __shfl_xor_sync(kAll, total, 2);
                factors[half] = kept_scale / total;
                int own = row + 16 * i + 8 * half + lane_id() / 4;
                if (lane_id() % 4 == 0 && own < rows) {
                    log_sums[uint64_t(own) * sums_ld] = fmaf(peaks[i][half], scale, logf(total));
                }
            }
            store_rows(out, out_ld, row + 16 * i, rows, sums[i], factors);
        }
    }
};

}  // namespace attention
