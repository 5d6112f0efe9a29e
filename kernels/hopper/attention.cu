// Softmax attention on the tensor cores of compute capability 9.0a, for heads of 64 columns: as ../attention.cu and
// ../attention_backward.cu, which have the formulas, with products of warpgroups.
//
// Two warpgroups of a block have 64 rows each, of one head (of sequences with few rows: of two heads), and go through what moves past
// them in steps of 64. Other warps copy, slot by slot of a ring, up to three slots ahead and on into the next turn's, so that memory does not wait for
// products; blocks stay and take turns, the longest first.
//
// attention_forward_hopper: rows are queries, which are left operands from registers. Two such teams a block, so that one multiplies
//   while the other weighs.
// attention_backward_hopper: rows are keys, products transposed: dK and dV are summed in registers, D is computed by the warps that
//   copy. Where the block has all keys of a sequence, dS is left in shared memory and dQ comes from it: of a head that both
//   warpgroups have, one of them computes it for the even steps, the other for the odd ones.
// attention_backward_queries_hopper: dQ of longer sequences, once more from the products; rows are queries.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#include "attention.cuh"

namespace hopper_attention {

// The block's shared memory, where the swizzle's pattern begins.
template <typename Memory>
__device__ __forceinline__ Memory& shared_memory() {
    extern __shared__ __align__(1024) unsigned char taskloom_ring[];
    uint32_t past = shared_address(taskloom_ring) & 1023u;
    return *reinterpret_cast<Memory*>(taskloom_ring + (past ? 1024 - past : 0));
}

// Where a head's rows of queries, keys or values begin.
__device__ __forceinline__ const bf16* rows_of(const bf16* matrix, uint32_t row, int ld, int head) {
    return matrix + uint64_t(row) * ld + head * kDim;
}

// --- forward ---

constexpr int kForwardSlots = 6;
constexpr int kAhead = 3;

// Teams of two warpgroups, each with two warps that copy for them. Drawing masks takes registers for which there is room with one.
template <bool DROPS>
struct Teams {
    static constexpr int kCount = DROPS ? 1 : 2;
    static constexpr int kThreads = 128 + 256 * kCount;
    static constexpr int kCopying = DROPS ? 88 : 32;
    static constexpr int kMultiplying = DROPS ? 208 : 112;
};

struct ForwardMemory {
    // Queries of both warpgroups, or keys and values of a step.
    alignas(1024) bf16 slots[kForwardSlots][2][kTile];
    // Of the slots that hold queries, one for each warp that copies; both are the same.
    Turn turns[kForwardSlots][2];
    uint64_t barriers[2 * kForwardSlots];
};

// One of the two warps that copy for a team: queries, dO if there is any, then keys and values step by step. `part` is the tile that it
// fills of every slot.
__device__ __forceinline__ void copy_for_queries(ForwardMemory& memory, Ring<kForwardSlots> ring, uint32_t part, const Matrices& from,
                                                 const Turns& turns, uint32_t number, uint32_t step) {
    int heads = int(turns.heads);
    Copies<kAhead> copies;
    auto begin = [&] {
        ring.wait_empty();
        // The warp has read what stood there, if no copy came of it.
        __syncwarp();
        return shared_address(memory.slots[ring.slot()][part]);
    };
    auto next = [&] {
        copies.push(ring);
        ring.advance();
    };
    turns.each(number, step, [&](const AttentionBlock* block, int head, int of_heads) {
        Shared to = begin();
        Turn& turn = memory.turns[ring.slot()][part];
        turn.be(block, head, of_heads);
        if (turn.over()) {
            return false;
        }
        auto rows_for = [&](const bf16* matrix, int ld) {
            const bf16* source = rows_of(matrix, turn.block.start + turn.row_of(part), ld, turn.head_of(part));
            if (turn.heads == 0 || int(part) < turn.heads) {
                fill_by_warp(to, source, ld, turn.owned(turn.block.query_end) - turn.row_of(part));
            }
            next();
        };
        rows_for(from.q, from.q_ld);
        if (from.dout) {
            to = begin();
            rows_for(from.dout, from.dout_ld);
        }
        const bf16* source = rows_of(from.kv, turn.block.key_first, from.kv_ld, turn.head + part * heads);
        int parts = turn.parts();
#pragma unroll 1
        for (int left = turn.keys(); left > 0; left -= kRows) {
#pragma unroll 1
            for (int at = 0; at < parts; ++at) {
                fill_by_warp(begin(), source + at * kDim, from.kv_ld, left);
                next();
            }
            source += uint64_t(kRows) * from.kv_ld;
        }
        return true;
    });
    begin();
    if (lane_id() == 0) {
        memory.turns[ring.slot()][part] = last_turn();
    }
    copies.push(ring);
    copies.drain(ring);
}

struct ForwardOut {
    bf16* out;
    float* log_sums;
    int out_ld, sums_ld;
};

template <bool DROPS>
__device__ __forceinline__ void forward(const ForwardOut& to, const Matrices& from, const Turns& turns,
                                        const LayerDropout& drops) {
    typedef Teams<DROPS> Team;
    // In a way that the compiler knows to be the same for all of a warp.
    int warp = __shfl_sync(kAll, warp_id(), 0), warpgroup = warp / 4;
    int team = warpgroup ? (warpgroup - 1) / 2 : warp % Team::kCount, group = (warpgroup + 1) % 2;
    ForwardMemory& memory = shared_memory<ForwardMemory[Team::kCount]>()[team];
    Ring<kForwardSlots> ring(memory.barriers);
    if (lane_id() == 0 && warp < Team::kCount) {
        ring.begin(2);
    }
    __syncthreads();
    if (warpgroup == 0) {
        hopper::give_registers<Team::kCopying>();
        uint32_t number = Team::kCount * blockIdx.x + uint32_t(team);
        if (warp < 2 * Team::kCount) {
            copy_for_queries(memory, ring, uint32_t(warp) / Team::kCount, from, turns, number, Team::kCount * gridDim.x);
        }
        return;
    }
    hopper::take_registers<Team::kMultiplying>();
    int heads = int(turns.heads);
    float scale = rsqrtf(float(kDim)), slope = scale * kLog2E;
    while (true) {
        ring.wait_full();
        Turn turn = memory.turns[ring.slot()][0];
        if (turn.over()) {
            return;
        }
        int head = turn.head_of(group), count = turn.keys(), rows = turn.owned(turn.block.query_end);
        int first = turn.row_of(group), row = first + warp_row();
        if (first >= rows || head >= heads) {
            pass(ring, 1 + turn.tiles(count));
            continue;
        }
        uint32_t queries[4][1][4];
        hold(queries, memory.slots[ring.slot()][group], warp_row());
        release(ring.empty());
        ring.advance();
        attention::OnlineSoftmax<kDim, 1, DROPS> work;
        Dropout dropout = {};
        if (DROPS) {
            dropout = drops.of_head(uint32_t(head));
            work.name(dropout, turn.block.start, row, rows, count);
        }
        for (int key = 0; key < count; key += kRows) {
            for (int part = 0; part < turn.parts(); ++part) {
                if (!turn.takes(group, part)) {
                    pass(ring, 1);
                    continue;
                }
                ring.wait_full();
                const bf16* keys = memory.slots[ring.slot()][0];
                float scores[1][8][4];
                hopper::product_fence();
                set_product(scores[0], queries, keys);
                hopper::product_commit();
                hopper::product_wait<0>();
                hopper::arrived(scores[0]);
                if (count - key < kRows) {
                    work.mask(scores, count - key);
                }
                work.weigh(scores, slope);
                if (DROPS) {
                    work.drop(scores, dropout, key);
                }
                uint32_t weights[4][1][4];
                attention::as_lefts(weights, scores);
                hopper::product_fence();
                add_product(work.sums[0], weights, keys + kTile);
                hopper::product_commit();
                hopper::product_wait<0>();
                hopper::arrived(work.sums[0]);
                release(ring.empty());
                ring.advance();
            }
        }
        bf16* out = to.out + uint64_t(turn.block.start) * to.out_ld + head * kDim;
        float* log_sums = to.log_sums + uint64_t(turn.block.start) * to.sums_ld + head;
        work.finish(out, to.out_ld, log_sums, to.sums_ld, row, rows, scale, DROPS ? drops.scale : 1.0f);
    }
}

// Of the backward pass: a warpgroup that copies, two that multiply, which have 504 registers for a thread of each.
constexpr int kBackwardThreads = 384;
constexpr int kRegistersCopying = 88;
constexpr int kRegistersMultiplying = 208;

// --- gradients of queries of long sequences ---

template <bool DROPS>
__device__ __forceinline__ void backward_queries(bf16* dq, int dq_ld, const Matrices& at, const Turns& turns,
                                                 const LayerDropout& drops) {
    ForwardMemory& memory = shared_memory<ForwardMemory>();
    Ring<kForwardSlots> ring(memory.barriers);
    if (threadIdx.x == 0) {
        ring.begin(2);
    }
    __syncthreads();
    int group = __shfl_sync(kAll, int(threadIdx.x) / 128, 0) - 1;
    if (group < 0) {
        hopper::give_registers<kRegistersCopying>();
        if (threadIdx.x < 2 * kWarp) {
            copy_for_queries(memory, ring, threadIdx.x / kWarp, at, turns, blockIdx.x, gridDim.x);
        }
        return;
    }
    hopper::take_registers<kRegistersMultiplying>();
    float scale = rsqrtf(float(kDim)), slope = scale * kLog2E;
    while (true) {
        ring.wait_full();
        Turn turn = memory.turns[ring.slot()][0];
        if (turn.over()) {
            return;
        }
        int head = turn.head, count = turn.keys(), rows = turn.owned(turn.block.query_end);
        int first = turn.row_of(group), row = warp_row();
        if (first >= rows) {
            pass(ring, 2 + turn.tiles(count));
            continue;
        }
        uint32_t queries[4][1][4], douts[4][1][4];
        hold(queries, memory.slots[ring.slot()][group], row);
        release(ring.empty());
        ring.advance();
        Dropout dropout = {};
        if (DROPS) {
            dropout = drops.of_head(uint32_t(head));
        }
        uint32_t own = turn.block.start + uint32_t(first);
        Matrices mine = at;
        mine.out += uint64_t(own) * at.out_ld + head * kDim;
        mine.log_sums += uint64_t(own) * at.sums_ld + head;
        ring.wait_full();
        hold(douts, memory.slots[ring.slot()][group], row);
        attention::QueryRows<kDim, 1, DROPS> work(mine, memory.slots[ring.slot()][group], dropout, row, rows - first, own, count);
        release(ring.empty());
        ring.advance();
        for (int key = 0; key < count; key += kRows) {
            ring.wait_full();
            const bf16* keys = memory.slots[ring.slot()][0];
            float scores[1][8][4], slopes[1][8][4];
            hopper::product_fence();
            set_product(scores[0], queries, keys);
            set_product(slopes[0], douts, keys + kTile);
            hopper::product_commit();
            hopper::product_wait<0>();
            hopper::arrived(scores[0]);
            hopper::arrived(slopes[0]);
            work.slopes_by_queries(slopes, scores, dropout, key, count - key, slope);
            uint32_t left[4][1][4];
            attention::as_lefts(left, slopes);
            hopper::product_fence();
            add_product(work.sums[0], left, keys);
            hopper::product_commit();
            hopper::product_wait<0>();
            hopper::arrived(work.sums[0]);
            release(ring.empty());
            ring.advance();
        }
        float factors[2] = {scale, scale};
        attention::store_rows(dq + uint64_t(own) * dq_ld + head * kDim, dq_ld, row, rows - first, work.sums[0], factors);
    }
}

// --- gradients of keys and values ---

constexpr int kStages = 5;

struct BackwardMemory {
    // Keys and values of both warpgroups, of a turn and of the one after.
    alignas(1024) bf16 owned[2][2][2][kTile];
    // Queries and dO of a step.
    alignas(1024) bf16 stages[kStages][2][kTile];
    // dS (keys x queries) of both warpgroups, of a step and of the one before.
    alignas(1024) bf16 slopes[2][2][kTile];
    // Of the steps' queries: as exponents of 2, infinite behind the last, where weights are zero then; D.
    float log_sums[kStages][kRows];
    float products[kStages][kRows];
    attention::QueryWords words[kStages][kRows];
    Turn turns[2];
    uint64_t owned_barriers[4];
    uint64_t stage_barriers[2 * kStages];
};

// The first 128 threads of the block.
template <bool DROPS>
__device__ __forceinline__ void copy_for_keys(BackwardMemory& memory, Ring<2> owned, Ring<kStages> ring, const Matrices& at,
                                              const Turns& turns, const Dropout& dropout) {
    int heads = int(turns.heads);
    Shared begun = 0;
    auto next = [&](Shared full) {
        complete<1>(begun);
        begun = full;
    };
    turns.each(blockIdx.x, gridDim.x, [&](const AttentionBlock* block, int head, int of_heads) {
        Turn turn{*block, head, of_heads};
        if (turn.over()) {
            return false;
        }
        owned.wait_empty();
        if (threadIdx.x == 0) {
            memory.turns[owned.slot()] = turn;
        }
        int keys = turn.owned(turn.block.key_end), queries = turn.queries();
        for (int group = 0; group < 2; ++group) {
            int row = turn.row_of(group);
            if (row < keys && turn.head_of(group) < heads) {
                bf16(&tiles)[2][kTile] = memory.owned[owned.slot()][group];
                const bf16* from = rows_of(at.kv, turn.block.start + row, at.kv_ld, turn.head_of(group));
                Rows::fill<kRows>(tiles[0], from, at.kv_ld, keys - row);
                Rows::fill<kRows>(tiles[1], from + heads * kDim, at.kv_ld, keys - row);
            }
        }
        next(owned.full());
        owned.advance();
        for (int query = 0; query < queries; query += kRows) {
            for (int part = 0; part < turn.parts(); ++part) {
                uint32_t row = turn.block.query_first + query;
                int head = turn.head_of(part), rows = queries - query, own = int(threadIdx.x);
                const bf16* dout = rows_of(at.dout, row, at.dout_ld, head);
                attention::RowProducts<kDim> products;
                products.load(rows_of(at.out, row, at.out_ld, head), at.out_ld, dout, at.dout_ld, rows);
                float log_sum = INFINITY;
                attention::QueryWords words = {};
                if (own < min(rows, kRows)) {
                    log_sum = at.log_sums[uint64_t(row + own) * at.sums_ld + head] * kLog2E;
                }
                if (DROPS && own < kRows) {
                    words = attention::words_of(dropout, row + uint32_t(min(own, rows - 1)), turn.keys());
                }
                ring.wait_empty();
                Rows::fill<kRows>(memory.stages[ring.slot()][0], rows_of(at.q, row, at.q_ld, head), at.q_ld, rows);
                Rows::fill<kRows>(memory.stages[ring.slot()][1], dout, at.dout_ld, rows);
                products.finish(memory.products[ring.slot()]);
                if (own < kRows) {
                    memory.log_sums[ring.slot()][own] = log_sum;
                    if (DROPS) {
                        memory.words[ring.slot()][own] = words;
                    }
                }
                next(ring.full());
                ring.advance();
            }
        }
        return true;
    });
    owned.wait_empty();
    if (threadIdx.x == 0) {
        memory.turns[owned.slot()] = last_turn();
    }
    next(owned.full());
    next(0);
}

// dQ of a step's queries (rows) from dS and keys of `tiles` warpgroups.
__device__ __forceinline__ void step_queries(bf16* dq, int dq_ld, const bf16 (&slopes)[2][kTile], const bf16 (&owned)[2][2][kTile],
                                             int first, int tiles, int rows, float scale) {
    float sums[8][4];
    hopper::product_fence();
    for (int tile = first; tile < first + tiles; ++tile) {
        uint64_t a = hopper::operand(shared_address(slopes[tile]), 0), b = hopper::operand(shared_address(owned[tile][0]), 0);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (tile == first && k == 0) {
                Product<64, true, true>::set(sums, a, b);
            } else {
                Product<64, true, true>::add(sums, a + 128 * k, b + 128 * k);
            }
        }
    }
    hopper::product_commit();
    hopper::product_wait<0>();
    hopper::arrived(sums);
    float factors[2] = {scale, scale};
    attention::store_rows(dq, dq_ld, warp_row(), rows, sums, factors);
}

// Leaves dS in shared memory, (keys x queries).
__device__ __forceinline__ void leave(bf16* slopes, const uint32_t (&left)[4][1][4]) {
    int row = warp_row() + lane_id() % 16;
    Shared at = shared_address(slopes + Rows::place(row, lane_id() / 16));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const uint32_t(&words)[4] = left[k][0];
        hopper::store_matrices(at ^ (2 * k) << 4, words[0], words[1], words[2], words[3]);
    }
}

struct Gradients {
    bf16* dq;
    bf16* dkv;
    int dq_ld, dkv_ld;
};

template <bool DROPS>
__device__ __forceinline__ void backward(const Gradients& to, const Matrices& at, const Turns& turns,
                                         const LayerDropout& drops) {
    BackwardMemory& memory = shared_memory<BackwardMemory>();
    Ring<2> owned(memory.owned_barriers);
    Ring<kStages> ring(memory.stage_barriers);
    if (threadIdx.x == 0) {
        owned.begin(4);
        ring.begin(4);
    }
    __syncthreads();
    int group = __shfl_sync(kAll, int(threadIdx.x) / 128, 0) - 1;
    if (group < 0) {
        hopper::give_registers<kRegistersCopying>();
        Dropout dropout = {};
        if (DROPS) {
            dropout.tokens = drops.tokens;
        }
        copy_for_keys<DROPS>(memory, owned, ring, at, turns, dropout);
        return;
    }
    hopper::take_registers<kRegistersMultiplying>();
    float scale = rsqrtf(float(kDim)), slope = scale * kLog2E;
    int heads = int(turns.heads);
    // Steps of heads that both warpgroups have, over all turns: dS of neighbouring ones lies apart, and the warpgroups take turns with dQ.
    int step = 0;
    while (true) {
        owned.wait_full();
        Turn turn = memory.turns[owned.slot()];
        if (turn.over()) {
            return;
        }
        bf16(&tiles)[2][2][kTile] = memory.owned[owned.slot()];
        int head = turn.head_of(group), keys = turn.owned(turn.block.key_end), queries = turn.queries();
        int first = turn.row_of(group), row = warp_row();
        bool whole = turn.keys() <= (turn.heads ? kRows : 2 * kRows);
        if (first >= keys || head >= heads) {
            pass(ring, turn.tiles(queries));
            release(owned.empty());
            owned.advance();
            continue;
        }
        Dropout dropout = {};
        if (DROPS) {
            dropout = drops.of_head(uint32_t(head));
        }
        // Left operands from registers, as far as there are any: from shared memory, both operands take all that it gives.
        uint32_t own_keys[4][1][4], own_values[4][1][4];
        hold(own_keys, tiles[group][0], row);
        if (!DROPS) {
            hold(own_values, tiles[group][1], row);
        }
        float dkeys[8][4], dvalues[8][4];
        attention::clear(reinterpret_cast<float(&)[1][8][4]>(dkeys));
        attention::clear(reinterpret_cast<float(&)[1][8][4]>(dvalues));
        for (int query = 0; query < queries; query += kRows) {
            for (int part = 0; part < turn.parts(); ++part) {
                if (!turn.takes(group, part)) {
                    pass(ring, 1);
                    continue;
                }
                ring.wait_full();
                const bf16 *q = memory.stages[ring.slot()][0], *dout = memory.stages[ring.slot()][1];
                float scores[1][8][4], slopes[1][8][4];
                uint32_t kept[1], weights[4][1][4], left[4][1][4];
                hopper::product_fence();
                set_product(scores[0], own_keys, q);
                hopper::product_commit();
                if (DROPS) {
                    set_product(slopes[0], tiles[group][1], dout);
                } else {
                    set_product(slopes[0], own_values, dout);
                }
                hopper::product_commit();
                hopper::product_wait<1>();
                hopper::arrived(scores[0]);
                attention::weigh_by_keys(scores, memory.log_sums[ring.slot()], row, keys - first, slope);
                attention::as_lefts(weights, scores);
                if (DROPS) {
                    int number = int(turn.block.start - turn.block.key_first) + first + row;
                    kept[0] = attention::draw_by_keys<8>(dropout, memory.words[ring.slot()], number);
                    attention::each(scores, [&](int i, int j, int k) {
                        return attention::keeps(kept, i, j, k) ? attention::weight_of(weights, i, j, k) : 0.0f;
                    });
                    attention::as_lefts(left, scores);
                }
                hopper::product_fence();
                add_product(dvalues, DROPS ? left : weights, dout);
                hopper::product_commit();
                // The product with dO is behind it.
                hopper::product_wait<1>();
                hopper::arrived(slopes[0]);
                attention::slopes_by_keys<DROPS>(slopes, weights, kept, memory.products[ring.slot()], dropout.scale);
                uint32_t gradients[4][1][4];
                attention::as_lefts(gradients, slopes);
                hopper::product_fence();
                add_product(dkeys, gradients, q);
                hopper::product_commit();
                if (whole) {
                    // Before the last step's barrier, both warpgroups had ended what reads the dS of the step before it.
                    bf16(&shared)[2][kTile] = memory.slopes[step % 2];
                    if (turn.heads) {
                        // All warps have ended what reads the dS of the step before.
                        hopper::named_barrier(1 + group, 128);
                    }
                    leave(shared[group], gradients);
                    hopper::proxy_fence();
                    bf16* dq = to.dq + uint64_t(turn.block.query_first + query) * to.dq_ld + head * kDim;
                    if (turn.heads) {
                        hopper::named_barrier(1 + group, 128);
                        step_queries(dq, to.dq_ld, shared, tiles, group, 1, queries - query, scale);
                    } else {
                        hopper::named_barrier(3, 256);
                        if (step % 2 == group) {
                            step_queries(dq, to.dq_ld, shared, tiles, 0, 2, queries - query, scale);
                        }
                        ++step;
                    }
                }
                hopper::product_wait<0>();
                hopper::arrived(dkeys);
                hopper::arrived(dvalues);
                release(ring.empty());
                ring.advance();
            }
        }
        release(owned.empty());
        owned.advance();
        bf16* dkv = to.dkv + uint64_t(turn.block.start + first) * to.dkv_ld + head * kDim;
        float of_keys[2] = {scale, scale}, of_values[2] = {DROPS ? drops.scale : 1.0f, DROPS ? drops.scale : 1.0f};
        attention::store_rows(dkv, to.dkv_ld, row, keys - first, dkeys, of_keys);
        attention::store_rows(dkv + heads * kDim, to.dkv_ld, row, keys - first, dvalues, of_values);
    }
}

}  // namespace hopper_attention

// Arguments as those of the kernels in ../attention.cu and ../attention_backward.cu, but for the blocks: `large` that own up to 128
// rows, and behind them `small` that own up to 64. grid: as many blocks as the card has room for, or as there are turns.
#define ATTENTION_BLOCKS const AttentionBlock *blocks, uint32_t large, uint32_t small, uint32_t heads
#define ATTENTION_TURNS hopper_attention::Turns{blocks, large, small, heads}
#define ATTENTION_FORWARD_HOPPER(name, drops)                                                                               \
    extern "C" __global__ void __launch_bounds__(hopper_attention::Teams<drops>::kThreads, 1)                               \
        name(bf16* out, float* log_sums, const bf16* q, const bf16* kv, ATTENTION_BLOCKS, int out_ld, int sums_ld, int q_ld, \
             int kv_ld, ATTENTION_DROPOUT_TAKES) {                                                                          \
        hopper_attention::ForwardOut to{out, log_sums, out_ld, sums_ld};                                                    \
        attention::Matrices from{q, kv, nullptr, nullptr, nullptr, q_ld, kv_ld, 0, 0, 0};                                   \
        hopper_attention::forward<drops>(to, from, ATTENTION_TURNS, ATTENTION_DROPOUT_GIVES);                               \
    }
#define ATTENTION_BACKWARD_HOPPER(name, work)                                                                               \
    extern "C" __global__ void __launch_bounds__(hopper_attention::kBackwardThreads, 1)                                     \
        name(bf16* dq, bf16* dkv, const bf16* dout, const bf16* out, const float* log_sums, const bf16* q, const bf16* kv,  \
             ATTENTION_BLOCKS, int dq_ld, int dkv_ld, int dout_ld, int out_ld, int sums_ld, int q_ld, int kv_ld,            \
             ATTENTION_DROPOUT_TAKES) {                                                                                     \
        attention::Matrices at{q, kv, dout, out, log_sums, q_ld, kv_ld, dout_ld, out_ld, sums_ld};                          \
        work;                                                                                                               \
    }
#define ATTENTION_KEYS(drops)                                                                                               \
    hopper_attention::backward<drops>({dq, dkv, dq_ld, dkv_ld}, at, ATTENTION_TURNS, ATTENTION_DROPOUT_GIVES)
#define ATTENTION_QUERIES(drops)                                                                                            \
    hopper_attention::backward_queries<drops>(dq, dq_ld, at, ATTENTION_TURNS, ATTENTION_DROPOUT_GIVES)

ATTENTION_FORWARD_HOPPER(attention_forward_hopper, false)
ATTENTION_FORWARD_HOPPER(attention_forward_hopper_drop, true)
ATTENTION_BACKWARD_HOPPER(attention_backward_hopper, ATTENTION_KEYS(false))
ATTENTION_BACKWARD_HOPPER(attention_backward_hopper_drop, ATTENTION_KEYS(true))
ATTENTION_BACKWARD_HOPPER(attention_backward_queries_hopper, ATTENTION_QUERIES(false))
ATTENTION_BACKWARD_HOPPER(attention_backward_queries_hopper_drop, ATTENTION_QUERIES(true))

#endif
