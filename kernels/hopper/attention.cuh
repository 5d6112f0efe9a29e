// What attention's kernels for compute capability 9.0a share: whose turn it is, and the ring by which copying warps hand tiles to
// two warpgroups that multiply.
#pragma once

#include "../attention_backward.cuh"
#include "hopper.cuh"

namespace hopper_attention {

using attention::Dropout;
using attention::kLog2E;
using attention::LayerDropout;
using attention::Matrices;
using hopper::Product;
using hopper::Shared;
using hopper::shared_address;

constexpr int kDim = 64;
// Rows of a tile: those of a warpgroup, or those that move past it in a step.
constexpr int kRows = 64;
constexpr int kTile = kRows * kDim;
typedef attention::Tile<kDim> Rows;

// Work on one head of a sequence, of which a block owns up to 128 rows, a warpgroup 64 of them; or, of sequences where it owns up to
// 64, on two heads, one a warpgroup.
struct Turn {
    AttentionBlock block;
    int head;
    // 0: both warpgroups are at the same head. 1 or 2: each at its own, if there is one.
    int heads;

    __device__ __forceinline__ bool over() const { return block.key_first == block.key_end; }
    // Tiles that come for every step.
    __device__ __forceinline__ int parts() const { return heads ? heads : 1; }
    __device__ __forceinline__ int head_of(int group) const { return head + (heads ? group : 0); }
    // The first row of a warpgroup, of those that the block owns.
    __device__ __forceinline__ int row_of(int group) const { return heads ? 0 : kRows * group; }
    __device__ __forceinline__ bool takes(int group, int part) const { return heads ? part == group : true; }
    __device__ __forceinline__ int keys() const { return int(block.key_end - block.key_first); }
    __device__ __forceinline__ int queries() const { return int(block.query_end - block.query_first); }
    // Tiles that come for the steps of so many rows.
    __device__ __forceinline__ int tiles(int rows) const { return (rows + kRows - 1) / kRows * parts(); }
    // Of rows up to `end`, those that the block owns.
    __device__ __forceinline__ int owned(uint32_t end) const { return min(int(end - block.start), heads ? kRows : 2 * kRows); }

    // By a warp, whose registers are few: fields come from and go to memory by lane.
    __device__ __forceinline__ void be(const AttentionBlock* own, int own_head, int own_heads) {
        constexpr int kWords = sizeof(AttentionBlock) / 4;
        if (lane_id() < kWords) {
            reinterpret_cast<uint32_t*>(&block)[lane_id()] = reinterpret_cast<const uint32_t*>(own)[lane_id()];
        } else if (lane_id() == kWords) {
            head = own_head;
            heads = own_heads;
        }
        __syncwarp();
    }
};

// All turns of a launch: those on `large` blocks and, behind them, on `small` ones.
struct Turns {
    const AttentionBlock* blocks;
    uint32_t large, small, heads;

    // body(block, head, heads), as of a turn, for every `step`th from `number` on. It says whether the block owns anything: those that
    // own nothing are the last of either kind.
    template <typename Body>
    __device__ __forceinline__ void each(uint32_t number, uint32_t step, Body body) const {
        uint32_t pairs = (heads + 1) / 2, first_small = large * heads;
        while (number < first_small + small * pairs) {
            bool few = number >= first_small;
            uint32_t own = few ? number - first_small : number, apart = few ? pairs : heads, at = own / apart, head = own - at * apart;
            bool owns = body(blocks + (few ? large : 0) + at, int(few ? 2 * head : head), few ? int(min(2u, heads - 2 * head)) : 0);
            if (!owns && few) {
                return;
            }
            number += owns ? step : (first_small - number + step - 1) / step * step;
        }
    }
};

// The turn that ends all.
__device__ __forceinline__ Turn last_turn() { return Turn{}; }

// Two barriers for each of kSlots slots: full when those that copy have filled it, empty when the eight that multiply have read it.
template <int kSlots>
struct Ring {
    Shared barriers;
    // The slot, or that and kSlots in every other round: one register for both.
    int at = 0;

    __device__ __forceinline__ explicit Ring(const uint64_t (&barriers)[2 * kSlots]) : barriers(shared_address(barriers)) {}

    __device__ __forceinline__ void begin(int copying) const {
        for (int slot = 0; slot < kSlots; ++slot) {
            hopper::barrier_init(barriers + 16 * slot, copying);
            hopper::barrier_init(barriers + 16 * slot + 8, 8);
        }
    }

    __device__ __forceinline__ int slot() const { return at < kSlots ? at : at - kSlots; }
    __device__ __forceinline__ uint32_t phase() const { return at < kSlots ? 0 : 1; }
    __device__ __forceinline__ Shared full() const { return barriers + 16 * slot(); }
    __device__ __forceinline__ Shared empty() const { return full() + 8; }
    // Of the slot so many before this one.
    __device__ __forceinline__ Shared full_before(int count) const {
        return full() + 16 * (slot() < count ? kSlots - count : -count);
    }
    __device__ __forceinline__ void wait_full() const { hopper::barrier_wait(full(), phase()); }
    __device__ __forceinline__ void wait_empty() const { hopper::barrier_wait(empty(), phase() ^ 1); }

    __device__ __forceinline__ void advance() {
        at = at + 1 < 2 * kSlots ? at + 1 : 0;
    }
};

// A warp has read what a slot held; `empty` is its barrier.
__device__ __forceinline__ void release(Shared empty) {
    __syncwarp();
    if (lane_id() == 0) {
        hopper::barrier_arrive(empty);
    }
    __syncwarp();
}

// Past slots that this warpgroup has no use for.
template <int kSlots>
__device__ __forceinline__ void pass(Ring<kSlots>& ring, int slots) {
    for (int slot = 0; slot < slots; ++slot) {
        ring.wait_full();
        release(ring.empty());
        ring.advance();
    }
}

// Closes a group of a warp's copies. Those of the group kAhead before are complete, and so is what they fill, if there is such.
template <int kAhead>
__device__ __forceinline__ void complete(Shared full) {
    copy_async_commit();
    copy_async_wait<kAhead>();
    // Products read by another way than copies write.
    hopper::proxy_fence();
    __syncwarp();
    if (full && lane_id() == 0) {
        hopper::barrier_arrive(full);
    }
    __syncwarp();
}

// Copies of a warp under way, a group a slot: a slot of kSlots is full when kAhead more have been begun, or when drain() is over.
template <int kAhead>
struct Copies {
    // Slots that were begun.
    int begun = 0;

    // The slot that is filled has all its copies.
    template <int kSlots>
    __device__ __forceinline__ void push(const Ring<kSlots>& ring) {
        complete<kAhead>(begun >= kAhead ? ring.full_before(kAhead) : 0);
        ++begun;
    }

    // After the last slot, which was not advanced past.
    template <int kSlots>
    __device__ __forceinline__ void drain(Ring<kSlots>& ring) {
#pragma unroll 1
        for (int slot = 0; slot < kAhead; ++slot) {
            ring.advance();
            push(ring);
        }
    }
};

// As Rows::fill by one warp, with few registers: the first `rows` rows of a tile, zeros behind them.
__device__ __forceinline__ void fill_by_warp(Shared tile, const bf16* source, int ld, int rows) {
    // Read again for every tile: what follows from it would be kept over all of them.
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    uint32_t row = lane / 8, vector = lane % 8;
    const bf16* from = source + uint64_t(row) * ld + vector * attention::kVector;
    rows -= int(row);
#pragma unroll 2
    for (Shared to = tile + row * 2 * kDim + ((vector ^ row) << 4); to < tile + 2 * kTile; rows -= 4) {
        // Nothing is read for what lies behind the rows.
        hopper::bring_16(to, from, rows > 0 ? 16 : 0);
        from += uint64_t(4) * ld;
        // Four rows further, the swizzle has another bit.
        to = (to + 4 * 2 * kDim) ^ 64;
    }
}

// sums (64 x 64) = or += rows of `left` times rows of `right`, transposed.
__device__ __forceinline__ void set_product(float (&sums)[8][4], const uint32_t (&left)[4][1][4], const bf16* right) {
    uint64_t b = hopper::operand(shared_address(right), 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (k == 0) {
            Product<64, false, false>::set(sums, left[k][0], b);
        } else {
            Product<64, false, false>::add(sums, left[k][0], b + 2 * k);
        }
    }
}

__device__ __forceinline__ void set_product(float (&sums)[8][4], const bf16* left, const bf16* right) {
    uint64_t a = hopper::operand(shared_address(left), 0), b = hopper::operand(shared_address(right), 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (k == 0) {
            Product<64, false, false>::set(sums, a, b);
        } else {
            Product<64, false, false>::add(sums, a + 2 * k, b + 2 * k);
        }
    }
}

// sums (64 x 64) += left (64 x 64) times `right`, whose rows are the inner dimension.
__device__ __forceinline__ void add_product(float (&sums)[8][4], const uint32_t (&left)[4][1][4], const bf16* right) {
    uint64_t b = hopper::operand(shared_address(right), 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        Product<64, false, true>::add(sums, left[k][0], b + 128 * k);
    }
}

// Rows of this thread's warp, 16 from `row` on, as left operands.
__device__ __forceinline__ void hold(uint32_t (&left)[4][1][4], const bf16* tile, int row) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        Rows::left(left[k][0], tile, row, 16 * k);
    }
}

// The first of the 16 rows that a warp has of its warpgroup's 64.
__device__ __forceinline__ int warp_row() { return 16 * (warp_id() % 4); }

}  // namespace hopper_attention
