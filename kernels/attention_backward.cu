// Softmax attention over packed sequences, backward. With P the weights (from the forward pass's log-sums) and M the mask of
// dropout over 1 - p: dV = (P M)^T dO, dS = P (M dO V^T - D), D = row sums of dO O, dK = dS^T Q / sqrt(dim), dQ = dS K / sqrt(dim).
//
// attention_backward: a block takes 128 keys of one sequence and head (small: 64), each of its 4 warps 32 (16) of them, and goes
//   through the sequence's queries 64 at a time. Products are transposed, keys by queries, so that weights and dS are left
//   operands from registers, where dK and dV are summed too. Where these are all keys of the sequence, dS is left in shared
//   memory as well, and the block computes dQ: nothing else is launched for short sequences.
// attention_backward_queries: dQ of longer sequences, once more from the products: a block takes 128 queries and goes through
//   the keys 64 at a time, 32 of them in registers.
// Shared memory: keys, values, dS and two stages of queries, dO, log-sums and D; or queries, dO and two stages of keys and values.
//   Asynchronous copies and D run one step ahead.
// Floor: 10 keys x dim operations a query and head, 14 for longer sequences.
#include "attention_backward.cuh"

namespace attention {

// sums = rows `row`.. of `left` times rows `span`.. of `right`, transposed.
template <int DIM, int TALL, int TILES>
__device__ __forceinline__ void product(float (&sums)[TALL][TILES][4], const bf16* left, int row, const bf16* right, int span) {
    clear(sums);
#pragma unroll 2
    for (int k = 0; k < DIM / 16; ++k) {
        uint32_t a[TALL][4];
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            Tile<DIM>::left(a[i], left, row + 16 * i, 16 * k);
        }
        multiply(sums, a, [&](uint32_t(&b)[2][2], int column) { Tile<DIM>::right(b, right, span + column, 16 * k); });
    }
}

// Queries of a block, one of two stages.
template <int DIM>
struct QueryStage {
    bf16 q[kMoving * DIM];
    bf16 dout[kMoving * DIM];
    // As exponents of 2; infinite behind the last query, where weights are zero then.
    float log_sums[kMoving];
    float products[kMoving];
};

template <int DIM, int TALL>
struct KeyBlock {
    static constexpr int kKeys = 16 * TALL * kWarps;
    bf16 keys[kKeys * DIM];
    bf16 values[kKeys * DIM];
    // (keys x queries)
    bf16 slopes[kKeys * kMoving];
    QueryStage<DIM> stages[2];
    // Of both stages; a launch without dropout has no room for them.
    QueryWords words[2][kMoving];
};

template <int DIM, int TALL, bool DROPS>
struct Backward {
    typedef Tile<DIM> Rows;
    typedef Tile<kMoving> Slopes;
    typedef KeyBlock<DIM, TALL> Shared;
    typedef QueryStage<DIM> Stage;
    // Queries whose products are in registers.
    static constexpr int kSpan = 32;
    static constexpr int kTiles = kSpan / 8;

    float dkeys[TALL][DIM / 8][4];
    float dvalues[TALL][DIM / 8][4];

    // sums (own keys x DIM) += weights (own keys x kSpan) times rows `span`.. of `right`.
    __device__ __forceinline__ static void add_product(float (&sums)[TALL][DIM / 8][4], const uint32_t (&weights)[kSpan / 16][TALL][4],
                                                       const bf16* right, int span) {
#pragma unroll
        for (int k = 0; k < kSpan / 16; ++k) {
            multiply(sums, weights[k],
                     [&](uint32_t(&b)[2][2], int column) { Rows::right_transposed(b, right, span + 16 * k, column); });
        }
    }

    // Queries span .. span + kSpan of a stage, for the warp's keys from `row` on. `keys` are there; `first` is the number of the
    // block's first one in the sequence.
    __device__ __forceinline__ void step(Shared& shared, int turn, const Dropout& dropout, int span, int row, int keys, int first,
                                         float slope, bool whole) {
        const Stage& stage = shared.stages[turn];
        float scores[TALL][kTiles][4];
        uint32_t kept[TALL], weights[kSpan / 16][TALL][4], left[kSpan / 16][TALL][4];
        product<DIM>(scores, shared.keys, row, stage.q, span);
        weigh_by_keys(scores, stage.log_sums + span, row, keys, slope);
        as_lefts(weights, scores);
        if (DROPS) {
#pragma unroll
            for (int i = 0; i < TALL; ++i) {
                kept[i] = draw_by_keys<kTiles>(dropout, shared.words[turn] + span, first + row + 16 * i);
            }
            each(scores, [&](int i, int j, int k) { return keeps(kept, i, j, k) ? weight_of(weights, i, j, k) : 0.0f; });
            as_lefts(left, scores);
            add_product(dvalues, left, stage.dout, span);
        } else {
            add_product(dvalues, weights, stage.dout, span);
        }
        product<DIM>(scores, shared.values, row, stage.dout, span);
        slopes_by_keys<DROPS>(scores, weights, kept, stage.products + span, dropout.scale);
        as_lefts(left, scores);
        add_product(dkeys, left, stage.q, span);
        if (whole) {
            leave(shared.slopes, left, span, row);
        }
    }

    // Leaves dS in shared memory, (keys x queries).
    __device__ __forceinline__ static void leave(bf16* slopes, const uint32_t (&left)[kSpan / 16][TALL][4], int span, int row) {
        int group = lane_id() / 4, thread = lane_id() % 4;
#pragma unroll
        for (int k = 0; k < kSpan / 16; ++k) {
#pragma unroll
            for (int i = 0; i < TALL; ++i) {
#pragma unroll
                for (int word = 0; word < 4; ++word) {
                    int own = row + 16 * i + group + 8 * (word % 2), vector = span / 8 + 2 * k + word / 2;
                    store_pack(slopes + Slopes::place(own, vector) + 2 * thread, bits_of<Pack<bf16, 2>>(left[k][i][word]));
                }
            }
        }
    }

    // dQ of a stage's queries, `rows` of them, from all keys: warps share out rows, then columns by 32.
    __device__ __forceinline__ static void queries(bf16* dq, int dq_ld, const Shared& shared, int keys, int rows, float scale) {
        constexpr int kTall = DIM / 32, kDown = kWarps / kTall;
        int row = warp_id() % kDown * 16 * kTall, column = warp_id() / kDown * 32;
        if (row >= (rows + kSpan - 1) / kSpan * kSpan) {
            return;
        }
        float sums[kTall][4][4];
        clear(sums);
#pragma unroll 1
        for (int key = 0; key < keys; key += 16) {
            uint32_t a[kTall][4];
#pragma unroll
            for (int i = 0; i < kTall; ++i) {
                Slopes::left_transposed(a[i], shared.slopes, key, row + 16 * i);
            }
            multiply(sums, a, [&](uint32_t(&b)[2][2], int j) { Rows::right_transposed(b, shared.keys, key, column + j); });
        }
        float factors[2] = {scale, scale};
#pragma unroll
        for (int i = 0; i < kTall; ++i) {
            store_rows(dq + column, dq_ld, row + 16 * i, rows, sums[i], factors);
        }
    }

    // Rows from `row` on of `rows`.
    __device__ __forceinline__ void finish(bf16* dkv, int dkv_ld, int values, int row, int rows, float scale, float kept_scale) const {
        float of_keys[2] = {scale, scale}, of_values[2] = {kept_scale, kept_scale};
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
            store_rows(dkv, dkv_ld, row + 16 * i, rows, dkeys[i], of_keys);
            store_rows(dkv + values, dkv_ld, row + 16 * i, rows, dvalues[i], of_values);
        }
    }
};

// What concerns queries from `row` (of `rows`) on is started, or loaded, for a stage; `packed` is the first of all rows.
template <int DIM, int TALL, bool DROPS>
__device__ __forceinline__ void begin_stage(KeyBlock<DIM, TALL>& shared, int turn, const Matrices& at, const Dropout& dropout,
                                            int row, int rows, uint32_t packed, int keys) {
    typedef Tile<DIM> Rows;
    QueryStage<DIM>& stage = shared.stages[turn];
    Rows::template fill<kMoving>(stage.q, at.q + uint64_t(row) * at.q_ld, at.q_ld, rows - row);
    Rows::template fill<kMoving>(stage.dout, at.dout + uint64_t(row) * at.dout_ld, at.dout_ld, rows - row);
    int own = int(threadIdx.x);
    if (own < kMoving) {
        bool there = row + own < rows;
        stage.log_sums[own] = there ? at.log_sums[uint64_t(row + own) * at.sums_ld] * kLog2E : INFINITY;
        if (DROPS) {
            shared.words[turn][own] = words_of(dropout, packed + uint32_t(min(row + own, rows - 1)), keys);
        }
    }
}

template <int DIM, int TALL, bool DROPS>
__device__ __forceinline__ void backward(bf16* dq, bf16* dkv, Matrices at, const AttentionBlock* blocks, int heads, int dq_ld,
                                         int dkv_ld, const LayerDropout& drops) {
    typedef Backward<DIM, TALL, DROPS> Work;
    typedef typename Work::Shared Shared;
    typedef RowProducts<DIM> Products;
    typedef Tile<DIM> Rows;
    SHARED_DYNAMIC(Shared, block);
    Shared& shared = *block;
    int head = int(blockIdx.x) % heads, column = head * DIM;
    AttentionBlock own = blocks[blockIdx.x / heads];
    int all = int(own.key_end - own.key_first), first = int(own.start - own.key_first);
    int keys = min(all - first, Shared::kKeys), rows = int(own.query_end - own.query_first);
    bool whole = all <= Shared::kKeys;
    at.q += uint64_t(own.query_first) * at.q_ld + column;
    at.dout += uint64_t(own.query_first) * at.dout_ld + column;
    at.out += uint64_t(own.query_first) * at.out_ld + column;
    at.log_sums += uint64_t(own.query_first) * at.sums_ld + head;
    const bf16* from = at.kv + uint64_t(own.start) * at.kv_ld + column;
    Rows::template fill<Shared::kKeys>(shared.keys, from, at.kv_ld, keys);
    Rows::template fill<Shared::kKeys>(shared.values, from + heads * DIM, at.kv_ld, keys);
    Dropout dropout = {};
    if (DROPS) {
        dropout = drops.of_head(uint32_t(head));
    }
    auto load = [&](Products& products, int row) {
        products.load(at.out + uint64_t(row) * at.out_ld, at.out_ld, at.dout + uint64_t(row) * at.dout_ld, at.dout_ld, rows - row);
    };
    if (rows > 0) {
        begin_stage<DIM, TALL, DROPS>(shared, 0, at, dropout, 0, rows, own.query_first, all);
        Products products;
        load(products, 0);
        products.finish(shared.stages[0].products);
    }
    copy_async_commit();

    Work work;
    clear(work.dkeys);
    clear(work.dvalues);
    int row = 16 * TALL * warp_id();
    float scale = rsqrtf(float(DIM)), slope = scale * kLog2E;
    for (int query = 0; query < rows; query += kMoving) {
        int turn = query / kMoving % 2, following = query + kMoving;
        Products products;
        load(products, following);
        copy_async_wait<0>();
        // This step has arrived for all, and all are through with the stage that is filled next and with dS.
        __syncthreads();
        if (following < rows) {
            begin_stage<DIM, TALL, DROPS>(shared, 1 - turn, at, dropout, following, rows, own.query_first, all);
            products.finish(shared.stages[1 - turn].products);
        }
        copy_async_commit();
#pragma unroll 1
        for (int span = 0; span < kMoving; span += Work::kSpan) {
            if (row < keys && query + span < rows) {
                work.step(shared, turn, dropout, span, row, keys, first, slope, whole);
            }
        }
        if (whole) {
            __syncthreads();
            bf16* out = dq + uint64_t(own.query_first + query) * dq_ld + column;
            Work::queries(out, dq_ld, shared, keys, min(rows - query, kMoving), scale);
        }
    }
    if (row < keys) {
        bf16* out = dkv + uint64_t(own.start) * dkv_ld + column;
        work.finish(out, dkv_ld, heads * DIM, row, keys, scale, DROPS ? drops.scale : 1.0f);
    }
}

template <int DIM>
struct QueryBlock {
    static constexpr int kTall = 2;
    static constexpr int kQueries = 16 * kTall * kWarps;
    bf16 q[kQueries * DIM];
    bf16 dout[kQueries * DIM];
    // Keys and values of two stages.
    bf16 stages[2][2][kMoving * DIM];
};

template <int DIM, bool DROPS>
struct BackwardQueries : QueryRows<DIM, QueryBlock<DIM>::kTall, DROPS> {
    typedef Tile<DIM> Rows;
    typedef QueryBlock<DIM> Shared;
    static constexpr int kTall = Shared::kTall;
    typedef QueryRows<DIM, kTall, DROPS> Base;
    using Base::Base;
    using Base::sums;
    // Keys whose products are in registers.
    static constexpr int kSpan = 32;
    static constexpr int kTiles = kSpan / 8;

    // Keys span .. span + kSpan of a stage: from number `key` of the sequence on, of which `left` are there.
    __device__ __forceinline__ void step(const Shared& shared, const bf16* keys, const bf16* values, const Dropout& dropout, int row,
                                         int span, int key, int left, float slope) {
        float weights[kTall][kTiles][4], slopes[kTall][kTiles][4];
        product<DIM>(weights, shared.q, row, keys, span);
        product<DIM>(slopes, shared.dout, row, values, span);
        this->slopes_by_queries(slopes, weights, dropout, key, left, slope);
#pragma unroll
        for (int k = 0; k < kSpan / 16; ++k) {
            uint32_t a[kTall][4];
#pragma unroll
            for (int i = 0; i < kTall; ++i) {
                as_left(a[i], slopes[i], k);
            }
            multiply(sums, a, [&](uint32_t(&b)[2][2], int column) { Rows::right_transposed(b, keys, span + 16 * k, column); });
        }
    }
};

template <int DIM, bool DROPS>
__device__ __forceinline__ void backward_queries(bf16* dq, Matrices at, const AttentionBlock* blocks, int heads, int dq_ld,
                                                 const LayerDropout& drops) {
    typedef BackwardQueries<DIM, DROPS> Work;
    typedef QueryBlock<DIM> Shared;
    typedef Tile<DIM> Rows;
    SHARED_DYNAMIC(Shared, block);
    Shared& shared = *block;
    int head = int(blockIdx.x) % heads, column = head * DIM;
    AttentionBlock own = blocks[blockIdx.x / heads];
    if (own.query_first == own.query_end) {
        return;
    }
    int rows = min(int(own.query_end - own.start), Shared::kQueries), count = int(own.key_end - own.key_first);
    at.out += uint64_t(own.start) * at.out_ld + column;
    at.log_sums += uint64_t(own.start) * at.sums_ld + head;
    const bf16* keys = at.kv + uint64_t(own.key_first) * at.kv_ld + column;
    auto fill = [&](int key) {
        bf16(&stage)[2][kMoving * DIM] = shared.stages[key / kMoving % 2];
        const bf16* from = keys + uint64_t(key) * at.kv_ld;
        Rows::template fill<kMoving>(stage[0], from, at.kv_ld, count - key);
        Rows::template fill<kMoving>(stage[1], from + heads * DIM, at.kv_ld, count - key);
    };
    Rows::template fill<Shared::kQueries>(shared.q, at.q + uint64_t(own.start) * at.q_ld + column, at.q_ld, rows);
    Rows::template fill<Shared::kQueries>(shared.dout, at.dout + uint64_t(own.start) * at.dout_ld + column, at.dout_ld, rows);
    fill(0);
    copy_async_commit();
    Dropout dropout = {};
    if (DROPS) {
        dropout = drops.of_head(uint32_t(head));
    }
    copy_async_wait<0>();
    __syncthreads();
    int row = 16 * Shared::kTall * warp_id();
    Work work(at, shared.dout, dropout, row, rows, own.start, count);
    float scale = rsqrtf(float(DIM)), slope = scale * kLog2E;
    for (int key = 0; key < count; key += kMoving) {
        copy_async_wait<0>();
        // This step has arrived for all, and all are through with the stage that is filled next.
        __syncthreads();
        if (key + kMoving < count) {
            fill(key + kMoving);
        }
        copy_async_commit();
        const bf16(&stage)[2][kMoving * DIM] = shared.stages[key / kMoving % 2];
#pragma unroll 1
        for (int span = 0; span < kMoving; span += Work::kSpan) {
            if (row < rows && key + span < count) {
                work.step(shared, stage[0], stage[1], dropout, row, span, key + span, count - key - span, slope);
            }
        }
    }
    if (row < rows) {
        bf16* out = dq + uint64_t(own.start) * dq_ld + column;
        float factors[2] = {scale, scale};
#pragma unroll
        for (int i = 0; i < Shared::kTall; ++i) {
            store_rows(out, dq_ld, row + 16 * i, rows, work.sums[i], factors);
        }
    }
}

}  // namespace attention

// dq as q (queries x heads dim), dkv as kv (keys x 2 heads dim): keys, then values; dout and out (queries x heads dim), log_sums
// (queries x heads) f32. What follows the leading dimensions is of dropout; the kernels whose names do not end in _drop read none
// of it. grid: blocks x heads.
#define ATTENTION_BACKWARD_TAKES                                                                                               \
    bf16 *dq, bf16 *dkv, const bf16 *dout, const bf16 *out, const float *log_sums, const bf16 *q, const bf16 *kv,              \
        const AttentionBlock *blocks, int heads, int dq_ld, int dkv_ld, int dout_ld, int out_ld, int sums_ld, int q_ld,        \
        int kv_ld, ATTENTION_DROPOUT_TAKES
#define ATTENTION_MATRICES attention::Matrices{q, kv, dout, out, log_sums, q_ld, kv_ld, dout_ld, out_ld, sums_ld}
#define ATTENTION_BACKWARD_GIVES dq, dkv, ATTENTION_MATRICES, blocks, heads, dq_ld, dkv_ld, ATTENTION_DROPOUT_GIVES
// dq of blocks of queries alone.
#define ATTENTION_QUERIES_GIVES dq, ATTENTION_MATRICES, blocks, heads, dq_ld, ATTENTION_DROPOUT_GIVES

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_64(ATTENTION_BACKWARD_TAKES) {
    attention::backward<64, 2, false>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_64_drop(ATTENTION_BACKWARD_TAKES) {
    attention::backward<64, 2, true>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_64_small(ATTENTION_BACKWARD_TAKES) {
    attention::backward<64, 1, false>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_64_small_drop(ATTENTION_BACKWARD_TAKES) {
    attention::backward<64, 1, true>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_32(ATTENTION_BACKWARD_TAKES) {
    attention::backward<32, 2, false>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_32_drop(ATTENTION_BACKWARD_TAKES) {
    attention::backward<32, 2, true>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_32_small(ATTENTION_BACKWARD_TAKES) {
    attention::backward<32, 1, false>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_32_small_drop(ATTENTION_BACKWARD_TAKES) {
    attention::backward<32, 1, true>(ATTENTION_BACKWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries_64(ATTENTION_BACKWARD_TAKES) {
    attention::backward_queries<64, false>(ATTENTION_QUERIES_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries_64_drop(ATTENTION_BACKWARD_TAKES) {
    attention::backward_queries<64, true>(ATTENTION_QUERIES_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries_32(ATTENTION_BACKWARD_TAKES) {
    attention::backward_queries<32, false>(ATTENTION_QUERIES_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries_32_drop(ATTENTION_BACKWARD_TAKES) {
    attention::backward_queries<32, true>(ATTENTION_QUERIES_GIVES);
}
