// Which rows of an embedding table a batch touches, and from where: the n-grams or tokens of its examples are fetched from data that lies
// on the device, sorted by row of J and row of the table, and united. Integer work in fixed orders, as ops/row_gradients.rs does it on
// the host; every grid fits the largest batch, and true counts are read from `counts`.
//
// An item is 8 bytes: above, what it is sorted by; below, what comes along. The sort is a stable radix sort of 8 bits at a time, least
// significant first: counts of each tile's digits, and the items to their places, for which every block adds up the counts before it.
// Floors: fetching 4 bytes an n-gram read and 12 written, a pass of the sort 24 bytes an item.
#include "row_init.cuh"

namespace row_index {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigits = 256;
constexpr int kDigitBits = 8;
// Items of one block, kThreads at a time.
constexpr int kTile = 4096;
constexpr uint32_t kStreamWordDropout = 3;

// Places of `counts`: n-grams or tokens of the batch, rows of all tasks' gradients, rows of their union, rows of the table with a slot, and as
// many before this batch.
enum Count { kEntries, kGradientRows, kUnionRows, kTouched, kTouchedBefore };

// Packed examples that are one task's, from `start` to the next part's, as `FetchPart` of ops/row_index.rs.
struct Part {
    uint32_t start;
    // Of J.
    uint32_t row;
    uint32_t task;
    // Number of the task's first example in the data.
    uint32_t first;
    // Tokens that pad the groups before its own; of n-grams there are none.
    uint32_t padding;
};

// The part of a packed example.
__device__ __forceinline__ Part part_of(const Part* parts, int count, uint32_t example) {
    int low = 0, high = count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (parts[middle].start <= example) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return parts[low];
}

// Examples of a batch, and what is dropped of them.
struct Batch {
    // (examples) each one's number within its task
    const uint32_t* examples;
    const Part* parts;
    int count;
    // Words below it drop an n-gram.
    uint32_t threshold;
    uint64_t seed;
    const uint64_t* round;

    __device__ __forceinline__ Part part_of(uint32_t example) const { return row_index::part_of(parts, count, example); }
};

// Four neighbouring n-grams of an example, and which of them are kept.
struct Four {
    bool kept[4];
    int count;

    __device__ __forceinline__ Four(const Batch& batch, const Part& part, uint32_t example, uint32_t block, uint32_t all) : count(0) {
        Words words = {};
        if (batch.threshold) {
            words = keyed_block(batch.seed, kStreamWordDropout, uint32_t(*batch.round), part.task, example, block);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            kept[i] = 4 * block + i < all && words.at[i] >= batch.threshold;
            count += kept[i];
        }
    }
};

// The sum of the values of lower lanes; `all` is left with that of all lanes.
__device__ __forceinline__ uint32_t sum_below(uint32_t value, uint32_t& all) {
    uint32_t sum = value;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        uint32_t below = __shfl_up_sync(kAll, sum, step);
        sum += lane_id() >= step ? below : 0;
    }
    all = __shfl_sync(kAll, sum, kWarp - 1);
    return sum - value;
}

// The sum of the values of the block's lower threads. `warps` is shared.
__device__ __forceinline__ uint32_t sum_of_threads_below(uint32_t value, uint32_t (&warps)[kWarps]) {
    uint32_t own, sum = sum_below(value, own);
    if (lane_id() == 0) {
        warps[warp_id()] = own;
    }
    __syncthreads();
    for (int warp = 0; warp < warp_id(); ++warp) {
        sum += warps[warp];
    }
    __syncthreads();
    return sum;
}

// The sum of the first `count` values, the same on every thread. `warps` is shared.
__device__ __forceinline__ uint32_t sum_of_first(const uint32_t* values, int count, uint32_t (&warps)[kWarps]) {
    uint32_t own = 0;
    for (int at = int(threadIdx.x); at < count; at += kThreads) {
        own += values[at];
    }
    uint32_t sum = block_sum(own, warps);
    __syncthreads();
    return sum;
}

// values[i] = the sum of those before it; returns the sum of all. One block of up to 32 warps; `warps` is shared.
__device__ __forceinline__ uint32_t running_sums(uint32_t* values, int count, uint32_t (&warps)[kWarp]) {
    uint32_t before = 0;
    for (int start = 0; start < count; start += int(blockDim.x)) {
        int at = start + int(threadIdx.x);
        uint32_t value = at < count ? values[at] : 0, own;
        uint32_t sum = sum_below(value, own);
        if (lane_id() == 0) {
            warps[warp_id()] = own;
        }
        __syncthreads();
        uint32_t lower = 0, all = 0;
        for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) {
            lower += warp < warp_id() ? warps[warp] : 0;
            all += warps[warp];
        }
        if (at < count) {
            values[at] = before + lower + sum;
        }
        before += all;
        __syncthreads();
    }
    return before;
}

__device__ __forceinline__ int tiles_of(uint32_t count) { return int((count + kTile - 1) / kTile); }

// The tile that leaves what is known after all of them; the first where there are no items.
__device__ __forceinline__ int last_tile(uint32_t count) { return count ? tiles_of(count) - 1 : 0; }

// Lanes of the warp that have an item of the same digit; none without an item.
__device__ __forceinline__ unsigned same_digit(bool there, uint32_t digit) {
    unsigned same = __ballot_sync(kAll, there);
#pragma unroll
    for (int bit = 0; bit < kDigitBits; ++bit) {
        unsigned set = __ballot_sync(kAll, digit >> bit & 1);
        same &= digit >> bit & 1 ? set : ~set;
    }
    return there ? same : 0;
}

__device__ __forceinline__ unsigned lanes_below() { return (1u << lane_id()) - 1; }

// How many of the block's threads below this one say yes; `all` is left with how many do. `warps` is shared.
__device__ __forceinline__ uint32_t yes_below(bool yes, uint32_t& all, uint32_t (&warps)[kWarps]) {
    unsigned votes = __ballot_sync(kAll, yes);
    if (lane_id() == 0) {
        warps[warp_id()] = uint32_t(__popc(votes));
    }
    __syncthreads();
    uint32_t lower = 0;
    all = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
        lower += warp < warp_id() ? warps[warp] : 0;
        all += warps[warp];
    }
    __syncthreads();
    return lower + uint32_t(__popc(votes & lanes_below()));
}

// Whether an item is the first of its key.
__device__ __forceinline__ bool is_first(const uint2* items, uint32_t at) { return at == 0 || items[at].y != items[at - 1].y; }

}  // namespace row_index

// offsets (examples) = n-grams that are left of each example. data_offsets (examples of the data + 1). A warp an example.
extern "C" __global__ void __launch_bounds__(256) bag_counts(uint32_t* offsets, const uint32_t* data_offsets, const uint32_t* examples,
                                                             const row_index::Part* parts, int part_count, int count,
                                                             uint32_t threshold, uint64_t seed, const uint64_t* round) {
    using namespace row_index;
    Batch batch = {examples, parts, part_count, threshold, seed, round};
    int row = int(blockIdx.x) * kWarps + warp_id();
    if (row >= count) {
        return;
    }
    Part part = batch.part_of(uint32_t(row));
    uint32_t example = examples[row], at = part.first + example;
    uint32_t all = data_offsets[at + 1] - data_offsets[at], kept = 0;
    for (uint32_t block = uint32_t(lane_id()); 4 * block < all; block += kWarp) {
        kept += uint32_t(Four(batch, part, example, block, all).count);
    }
    kept = warp_sum(kept);
    if (lane_id() == 0) {
        offsets[row] = kept;
    }
}

// offsets (count + 1) become running sums, of which the last is the batch's n-grams. One block.
extern "C" __global__ void __launch_bounds__(1024) bag_offsets(uint32_t* offsets, uint32_t* counts, int count) {
    using namespace row_index;
    __shared__ uint32_t warps[kWarp];
    uint32_t all = running_sums(offsets, count, warps);
    if (threadIdx.x == 0) {
        offsets[count] = all;
        counts[kEntries] = all;
    }
}

// What is left of each example, end to end: rows of the table, items (row of J << bits | row, packed example), and scales (examples)
// 1 / sqrt(n-grams) by what dropping leaves. A warp an example.
extern "C" __global__ void __launch_bounds__(256) bag_entries(uint32_t* rows, uint2* items, float* scales, const uint32_t* offsets,
                                                              const uint32_t* data_rows, const uint32_t* data_offsets,
                                                              const uint32_t* examples, const row_index::Part* parts,
                                                              int part_count, int count, uint32_t threshold, uint64_t seed,
                                                              const uint64_t* round, double left, int bits) {
    using namespace row_index;
    Batch batch = {examples, parts, part_count, threshold, seed, round};
    int row = int(blockIdx.x) * kWarps + warp_id();
    if (row >= count) {
        return;
    }
    Part part = batch.part_of(uint32_t(row));
    uint32_t example = examples[row], first = data_offsets[part.first + example];
    uint32_t all = data_offsets[part.first + example + 1] - first, to = offsets[row];
    for (uint32_t start = 0; 4 * start < all; start += kWarp) {
        uint32_t block = start + uint32_t(lane_id()), kept;
        Four four(batch, part, example, block, all);
        uint32_t own = to + sum_below(uint32_t(four.count), kept);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (four.kept[i]) {
                uint32_t number = data_rows[first + 4 * block + i];
                rows[own] = number;
                items[own] = uint2{uint32_t(row), part.row << bits | number};
                ++own;
            }
        }
        to += kept;
    }
    if (lane_id() == 0) {
        double scale = 1.0 / sqrt(double(all ? all : 1));
        scales[row] = float(batch.threshold ? scale / left : scale);
    }
}

// Tokens of each packed example, from bounds[row] on: ids, positions in the sequence, types and keys (tokens x 3: task, example, position);
// zeros for what pads its group, up to bounds[row + 1]. Items (row of J << bits | id, packed token) of those that pad nothing, of which
// there are *entries. Data: ids end to end, offsets (examples + 1), and where in its sequence each example's second text begins. A warp
// an example.
extern "C" __global__ void __launch_bounds__(256) token_entries(uint32_t* ids, uint32_t* positions, uint32_t* types, uint32_t* keys,
                                                                uint2* items, uint32_t* counts, const uint32_t* data_ids,
                                                                const uint32_t* data_offsets, const uint32_t* data_seconds,
                                                                const uint32_t* examples, const uint32_t* bounds,
                                                                const row_index::Part* parts, int part_count, int count,
                                                                const uint32_t* entries, int bits) {
    using namespace row_index;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        counts[kEntries] = *entries;
    }
    int row = int(blockIdx.x) * kWarps + warp_id();
    if (row >= count) {
        return;
    }
    Part part = part_of(parts, part_count, uint32_t(row));
    uint32_t example = examples[row], at = part.first + example;
    uint32_t from = data_offsets[at], length = data_offsets[at + 1] - from, second = data_seconds[at];
    uint32_t start = bounds[row], room = bounds[row + 1] - start;
    for (uint32_t position = uint32_t(lane_id()); position < room; position += kWarp) {
        bool is_there = position < length;
        uint32_t token = start + position, id = is_there ? data_ids[from + position] : 0;
        ids[token] = id;
        positions[token] = is_there ? position : 0;
        types[token] = is_there && position >= second;
        keys[3 * token] = is_there ? part.task : 0;
        keys[3 * token + 1] = is_there ? example : 0;
        keys[3 * token + 2] = is_there ? position : 0;
        if (is_there) {
            items[token - part.padding] = uint2{token, part.row << bits | id};
        }
    }
}

// sums (tiles of counts[which] x digits) = items of each tile with each digit of `shift`. grid: tiles of the most items.
extern "C" __global__ void __launch_bounds__(256) radix_counts(uint32_t* sums, const uint2* items, const uint32_t* counts, int which,
                                                               int shift) {
    using namespace row_index;
    __shared__ uint32_t own[kWarps][kDigits];
    uint32_t count = counts[which];
    int tile = int(blockIdx.x), tiles = tiles_of(count);
    if (tile >= tiles) {
        return;
    }
    for (int warp = 0; warp < kWarps; ++warp) {
        own[warp][threadIdx.x] = 0;
    }
    __syncthreads();
    for (int start = 0; start < kTile; start += kThreads) {
        uint32_t at = uint32_t(tile) * kTile + start + threadIdx.x;
        uint32_t digit = at < count ? items[at].y >> shift & (kDigits - 1) : 0;
        unsigned same = same_digit(at < count, digit);
        if (same && (same & lanes_below()) == 0) {
            own[warp_id()][digit] += uint32_t(__popc(same));
        }
        __syncwarp();
    }
    __syncthreads();
    uint32_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
        sum += own[warp][threadIdx.x];
    }
    sums[tile * kDigits + int(threadIdx.x)] = sum;
}

// out = items in the order of their digit of `shift`, else as they were. grid: as radix_counts.
extern "C" __global__ void __launch_bounds__(256) radix_scatter(uint2* out, const uint2* items, const uint32_t* sums,
                                                                const uint32_t* counts, int which, int shift) {
    using namespace row_index;
    // Items of each warp with a digit, then the place of the first of them.
    __shared__ uint32_t places[kWarps][kDigits];
    uint32_t count = counts[which];
    int tile = int(blockIdx.x), tiles = tiles_of(count);
    if (tile >= tiles) {
        return;
    }
    __shared__ uint32_t warps[kWarps];
    // Where the thread's digit goes on: behind all lower ones, and behind its own in the tiles before.
    uint32_t before = 0, all = 0;
#pragma unroll 8
    for (int other = 0; other < tiles; ++other) {
        uint32_t there = sums[other * kDigits + int(threadIdx.x)];
        before += other < tile ? there : 0;
        all += there;
    }
    uint32_t next = sum_of_threads_below(all, warps) + before;
    for (int start = 0; start < kTile; start += kThreads) {
        for (int warp = 0; warp < kWarps; ++warp) {
            places[warp][threadIdx.x] = 0;
        }
        __syncthreads();
        uint32_t at = uint32_t(tile) * kTile + start + threadIdx.x;
        uint2 item = at < count ? items[at] : uint2{0, 0};
        uint32_t digit = item.y >> shift & (kDigits - 1);
        unsigned same = same_digit(at < count, digit);
        if (same && (same & lanes_below()) == 0) {
            places[warp_id()][digit] = uint32_t(__popc(same));
        }
        __syncthreads();
        for (int warp = 0; warp < kWarps; ++warp) {
            uint32_t there = places[warp][threadIdx.x];
            places[warp][threadIdx.x] = next;
            next += there;
        }
        __syncthreads();
        if (same) {
            out[places[warp_id()][digit] + uint32_t(__popc(same & lanes_below()))] = item;
        }
        __syncthreads();
    }
}

// firsts (tiles of counts[which]) = items of each tile that are the first of their key; with slots, fresh (tiles) = of these, keys that
// are rows of the table without a slot. grid: as radix_counts.
extern "C" __global__ void __launch_bounds__(256) distinct_counts(uint32_t* firsts, uint32_t* fresh, const uint2* items,
                                                                  const uint32_t* slots, const uint32_t* counts, int which) {
    using namespace row_index;
    __shared__ uint32_t warps[2][kWarps];
    uint32_t count = counts[which];
    int tile = int(blockIdx.x);
    if (tile >= tiles_of(count)) {
        return;
    }
    uint32_t first = 0, untouched = 0;
    for (int start = 0; start < kTile; start += kThreads) {
        uint32_t at = uint32_t(tile) * kTile + start + threadIdx.x;
        bool own = at < count && is_first(items, at);
        first += own;
        untouched += own && slots && slots[items[at].y] == kUntouchedRow;
    }
    uint32_t all = block_sum(first, warps[0]), new_rows = block_sum(untouched, warps[1]);
    if (threadIdx.x == 0) {
        firsts[tile] = all;
        if (slots) {
            fresh[tile] = new_rows;
        }
    }
}

// Of sorted items (row of J << bits | row, packed example or token): sources (entries) are their examples; each first of its key is a row of the
// gradients, which begins at starts[row], is of tasks[row] (row of J), and makes an item of out (row, gradient row). Rows with a slot so
// far are those before this batch. grid: tiles of the most n-grams.
extern "C" __global__ void __launch_bounds__(256) gradient_rows(uint2* out, uint32_t* sources, uint32_t* starts, uint32_t* tasks,
                                                                const uint2* items, const uint32_t* firsts, uint32_t* counts,
                                                                int bits) {
    using namespace row_index;
    __shared__ uint32_t warps[kWarps];
    uint32_t count = counts[kEntries];
    int tile = int(blockIdx.x);
    if (tile > last_tile(count)) {
        return;
    }
    uint32_t next = sum_of_first(firsts, tile, warps);
    for (int start = 0; start < kTile; start += kThreads) {
        uint32_t at = uint32_t(tile) * kTile + start + threadIdx.x, all;
        bool own = at < count && is_first(items, at);
        uint32_t row = next + yes_below(own, all, warps);
        next += all;
        if (at < count) {
            sources[at] = items[at].x;
        }
        if (own) {
            uint32_t key = items[at].y;
            starts[row] = at;
            tasks[row] = key >> bits;
            out[row] = uint2{row, key & ((1u << bits) - 1)};
        }
    }
    if (tile == last_tile(count) && threadIdx.x == 0) {
        starts[next] = count;
        counts[kGradientRows] = next;
        counts[kTouchedBefore] = counts[kTouched];
    }
}

// Of items (row, gradient row) sorted by row: members (gradient rows) are their (row of J, gradient row); each first of its row is one
// of the union's rows, whose members begin at starts. Rows without a slot get the next ones, in order; touched (slots) has the row of
// each. grid: tiles of the most gradient rows.
extern "C" __global__ void __launch_bounds__(256) union_rows(uint32_t* rows, uint32_t* starts, uint2* members, uint32_t* union_slots,
                                                             uint32_t* slots, uint32_t* touched, const uint2* items,
                                                             const uint32_t* tasks, const uint32_t* firsts, const uint32_t* fresh,
                                                             uint32_t* counts) {
    using namespace row_index;
    __shared__ uint32_t warps[kWarps];
    uint32_t count = counts[kGradientRows];
    int tile = int(blockIdx.x);
    if (tile > last_tile(count)) {
        return;
    }
    uint32_t next = sum_of_first(firsts, tile, warps);
    uint32_t next_slot = counts[kTouchedBefore] + sum_of_first(fresh, tile, warps);
    for (int start = 0; start < kTile; start += kThreads) {
        uint32_t at = uint32_t(tile) * kTile + start + threadIdx.x, all;
        bool own = at < count && is_first(items, at);
        uint32_t place = next + yes_below(own, all, warps);
        next += all;
        uint32_t row = own ? items[at].y : 0, slot = own ? slots[row] : 0;
        bool untouched = own && slot == kUntouchedRow;
        uint32_t fresh_slot = next_slot + yes_below(untouched, all, warps);
        next_slot += all;
        if (at < count) {
            uint32_t gradient = items[at].x;
            members[at] = uint2{tasks[gradient], gradient};
        }
        if (untouched) {
            slot = fresh_slot;
            slots[row] = slot;
            touched[slot] = row;
        }
        if (own) {
            rows[place] = row;
            starts[place] = at;
            union_slots[place] = slot;
        }
    }
    if (tile == last_tile(count) && threadIdx.x == 0) {
        starts[next] = count;
        counts[kUnionRows] = next;
        counts[kTouched] = next_slot;
    }
}

// rows (entries) become their slots. grid: any.
extern "C" __global__ void __launch_bounds__(256) bag_slots(uint32_t* rows, const uint32_t* slots, const uint32_t* counts) {
    using namespace row_index;
    for (uint32_t at = blockIdx.x * blockDim.x + threadIdx.x; at < counts[kEntries]; at += gridDim.x * blockDim.x) {
        rows[at] = slots[rows[at]];
    }
}
