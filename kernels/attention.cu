// Softmax attention over packed sequences, forward: out = softmax(q k^T / sqrt(dim)) v, head by head (Dao 2023).
//
// A block takes 128 query rows of one sequence and head (small: 64), each of its 4 warps 32 (16) of them, and goes through the
// sequence's keys 64 at a time. Products on tensor cores (mma.sync), their left operands in registers: queries are loaded once,
// weights are the first product's results. Running peak, total and weighted sum of values of a row are f32 in registers.
// Shared memory: the queries, and two stages of 64 keys and values that asynchronous copies fill one step ahead.
// Rows of matrices are `ld` elements apart and begin at multiples of 16 bytes; heads lie side by side in their columns.
// Floor: 4 keys x dim operations a query and head; queries and outputs move once, keys and values once a block of queries.
#include "attention.cuh"

namespace attention {

template <int DIM, int TALL, bool DROPS>
struct Forward : OnlineSoftmax<DIM, TALL, DROPS> {
    static constexpr int kRows = 16 * TALL * kWarps;
    typedef OnlineSoftmax<DIM, TALL, DROPS> Base;
    typedef Tile<DIM> Rows;
    using Base::kTiles;
    using Base::sums;

    // With registers to spare, queries are loaded once; else for every step.
    static constexpr bool kHolds = TALL > 1;
    uint32_t held[kHolds ? TALL : 1][DIM / 16][4];

    __device__ __forceinline__ void hold(const bf16* queries, int row) {
#pragma unroll
        for (int i = 0; i < TALL; ++i) {
#pragma unroll
            for (int k = 0; k < DIM / 16; ++k) {
                Rows::left(held[i][k], queries, row + 16 * i, 16 * k);
            }
        }
    }

    __device__ __forceinline__ void query(uint32_t (&a)[4], const bf16* queries, int row, int i, int k) const {
        if constexpr (kHolds) {
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                a[word] = held[i][k][word];
            }
        } else {
            Rows::left(a, queries, row + 16 * i, 16 * k);
        }
    }

    // Keys from `key` on, of which `left` are there.
    __device__ __forceinline__ void step(const bf16* queries, const bf16* keys, const bf16* values, const Dropout& dropout, int row,
                                         int key, int left, float slope) {
        float scores[TALL][kTiles][4];
        clear(scores);
#pragma unroll(kHolds ? DIM / 16 : 1)
        for (int k = 0; k < DIM / 16; ++k) {
            uint32_t a[TALL][4];
#pragma unroll
            for (int i = 0; i < TALL; ++i) {
                query(a[i], queries, row, i, k);
            }
            multiply(scores, a, [&](uint32_t(&b)[2][2], int column) { Rows::right(b, keys, column, 16 * k); });
        }
        if (left < kMoving) {
            Base::mask(scores, left);
        }
        this->weigh(scores, slope);
        if (DROPS) {
            this->drop(scores, dropout, key);
        }
#pragma unroll
        for (int k = 0; k < kMoving / 16; ++k) {
            uint32_t a[TALL][4];
#pragma unroll
            for (int i = 0; i < TALL; ++i) {
                as_left(a[i], scores[i], k);
            }
            multiply(sums, a, [&](uint32_t(&b)[2][2], int column) { Rows::right_transposed(b, values, 16 * k, column); });
        }
    }
};

template <int DIM, int TALL, bool DROPS>
__device__ __forceinline__ void forward(bf16* out, float* log_sums, const bf16* q, const bf16* kv, const AttentionBlock* blocks,
                                        int heads, int out_ld, int sums_ld, int q_ld, int kv_ld, const LayerDropout& drops) {
    typedef Forward<DIM, TALL, DROPS> Work;
    typedef Tile<DIM> Rows;
    constexpr int kStage = 2 * kMoving * DIM;
    SHARED_DYNAMIC(bf16, shared);
    bf16* stages = shared + Work::kRows * DIM;
    int head = int(blockIdx.x) % heads;
    AttentionBlock own = blocks[blockIdx.x / heads];
    if (own.query_first == own.query_end) {
        return;
    }
    int rows = min(int(own.query_end - own.start), Work::kRows), count = int(own.key_end - own.key_first);
    const bf16* keys = kv + uint64_t(own.key_first) * kv_ld + head * DIM;
    auto fill = [&](int key) {
        bf16* stage = stages + key / kMoving % 2 * kStage;
        const bf16* from = keys + uint64_t(key) * kv_ld;
        Rows::template fill<kMoving>(stage, from, kv_ld, count - key);
        Rows::template fill<kMoving>(stage + kMoving * DIM, from + heads * DIM, kv_ld, count - key);
    };
    Rows::template fill<Work::kRows>(shared, q + uint64_t(own.start) * q_ld + head * DIM, q_ld, rows);
    fill(0);
    copy_async_commit();

    Work work;
    Dropout dropout = {};
    int row = 16 * TALL * warp_id();
    bool works = row < rows;
    if (DROPS) {
        dropout = drops.of_head(uint32_t(head));
        work.name(dropout, own.start, row, rows, count);
    }
    float scale = rsqrtf(float(DIM)), slope = scale * kLog2E;
    if (Work::kHolds) {
        copy_async_wait<0>();
        __syncthreads();
        work.hold(shared, row);
    }
    for (int key = 0; key < count; key += kMoving) {
        copy_async_wait<0>();
        // This step has arrived for all, and all are through with the stage that is filled next.
        __syncthreads();
        if (key + kMoving < count) {
            fill(key + kMoving);
        }
        copy_async_commit();
        if (works) {
            const bf16* stage = stages + key / kMoving % 2 * kStage;
            work.step(shared, stage, stage + kMoving * DIM, dropout, row, key, count - key, slope);
        }
    }
    if (works) {
        out += uint64_t(own.start) * out_ld + head * DIM;
        log_sums += uint64_t(own.start) * sums_ld + head;
        work.finish(out, out_ld, log_sums, sums_ld, row, rows, scale, DROPS ? drops.scale : 1.0f);
    }
}

}  // namespace attention

// out (queries x heads dim), log_sums (queries x heads) f32, q (queries x heads dim), kv (keys x 2 heads dim): keys, then values.
// Tokens and what follows them are those of dropout; the kernels whose names do not end in _drop read none. grid: blocks x heads.
#define ATTENTION_FORWARD_TAKES                                                                                                 \
    bf16 *out, float *log_sums, const bf16 *q, const bf16 *kv, const AttentionBlock *blocks, int heads, int out_ld, int sums_ld, \
        int q_ld, int kv_ld, ATTENTION_DROPOUT_TAKES
#define ATTENTION_FORWARD_GIVES out, log_sums, q, kv, blocks, heads, out_ld, sums_ld, q_ld, kv_ld, ATTENTION_DROPOUT_GIVES

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_64(ATTENTION_FORWARD_TAKES) {
    attention::forward<64, 2, false>(ATTENTION_FORWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_64_drop(ATTENTION_FORWARD_TAKES) {
    attention::forward<64, 2, true>(ATTENTION_FORWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_forward_64_small(ATTENTION_FORWARD_TAKES) {
    attention::forward<64, 1, false>(ATTENTION_FORWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_forward_64_small_drop(ATTENTION_FORWARD_TAKES) {
    attention::forward<64, 1, true>(ATTENTION_FORWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_32(ATTENTION_FORWARD_TAKES) {
    attention::forward<32, 2, false>(ATTENTION_FORWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_32_drop(ATTENTION_FORWARD_TAKES) {
    attention::forward<32, 2, true>(ATTENTION_FORWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_forward_32_small(ATTENTION_FORWARD_TAKES) {
    attention::forward<32, 1, false>(ATTENTION_FORWARD_GIVES);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_forward_32_small_drop(ATTENTION_FORWARD_TAKES) {
    attention::forward<32, 1, true>(ATTENTION_FORWARD_GIVES);
}
