// Row-sparse private gradients of an embedding table: built, multiplied and applied row by row. Which rows a task touches, and
// from which examples, is integer work that the host has sorted with the batch; the device does the sums.
//
// gradients: rows of all tasks end to end, (gradient rows x dim) f32. members of union row u: members[starts[u]..starts[u+1]],
// each a (task, gradient row), tasks ascending. Fixed orders throughout.
// Floors: backward 4 bytes a value of every source and 4 written; Gram 4 bytes a value of every member; update 4 bytes a value
// of every member and 24 a value of p, m, v.
#include "row_sums.cuh"
#include "update.cuh"

namespace row_gradients {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Parameters and moments of the table's slots; second_dim: dim, 1 (one moment a row) or 0. copy: of the values, or null.
struct State {
    float* values;
    float* first;
    float* second;
    bf16* copy;
    int second_dim;
    int dim;

    __device__ __forceinline__ void put(uint64_t at, float value) const {
        values[at] = value;
        if (copy) {
            copy[at] = from_float<bf16>(value);
        }
    }
};

// One optimizer step of a row from d = combined(column).
template <typename Combined>
__device__ __forceinline__ void step_row(const State& state, const Rates& rates, const GroupRates& group, uint64_t slot,
                                         Combined combined) {
    for (int column = threadIdx.x; column < state.dim; column += blockDim.x) {
        uint64_t at = slot * state.dim + column;
        float p = state.values[at], v = state.second_dim ? state.second[at] : 0.0f;
        step_one(rates, group, p, state.first[at], v, combined(column));
        state.put(at, p);
        if (state.second_dim) {
            state.second[at] = v;
        }
    }
}

// As step_row under AdamW where the row's only second moment is the running mean square of its gradient. `warps` is shared.
template <typename Combined>
__device__ __forceinline__ void step_row_single(const State& state, const Rates& rates, const GroupRates& group, uint64_t slot,
                                                float* warps, Combined combined) {
    float square = 0.0f;
    for (int column = threadIdx.x; column < state.dim; column += blockDim.x) {
        float d = combined(column);
        square = fmaf(d, d, square);
    }
    square = block_sum(square, warps);
    float v = fmaf(rates.beta2, state.second[slot], (1.0f - rates.beta2) * square / float(state.dim));
    float keep = 1.0f - group.lr * group.weight_decay;
    float rate = group.lr / rates.correction1 / (sqrtf(v / rates.correction2) + rates.eps);
    for (int column = threadIdx.x; column < state.dim; column += blockDim.x) {
        uint64_t at = slot * state.dim + column;
        float m = fmaf(rates.beta1, state.first[at], (1.0f - rates.beta1) * combined(column));
        state.first[at] = m;
        state.put(at, fmaf(keep, state.values[at], -rate * m));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        state.second[slot] = v;
    }
}

// What a rule for columns makes of a union row's gradients, with zeros for the tasks that did not touch the row.
struct RowRule {
    int rule;
    double parameter;
    const double* factors;
    uint64_t seed;
    uint64_t round;
    const float* gradients;
    const uint2* members;
    int tasks;
    int dim;
    // This thread's `tasks` doubles of shared memory, blockDim.x apart.
    double* own;

    // Of `column` of the row whose members are start..end and whose columns are numbered from `number`.
    __device__ __forceinline__ float value(uint32_t start, uint32_t end, uint64_t number, int column) const {
        int pitch = int(blockDim.x);
        for (int task = 0; task < tasks; ++task) {
            own[task * pitch] = 0.0;
        }
        for (uint32_t at = start; at < end; ++at) {
            uint2 member = members[at];
            own[int(member.x) * pitch] = factors[member.x] * double(gradients[uint64_t(member.y) * dim + column]);
        }
        return float(column_value(rule, parameter, own, pitch, tasks, column_bits(seed, round, number + column)));
    }
};

// How many of a row's members have a task below this one; tasks ascend.
__device__ __forceinline__ int members_below(const uint2* members, int size, int task) {
    int count = 0;
    while (count < size && int(members[count].x) < task) {
        ++count;
    }
    return count;
}

// What a warp does with the members of a union row: products in f32 a lane, all else in f64.
struct RowProducts {
    // (tasks x tasks); what this warp adds to, no other does.
    double* sums;
    const float* gradients;
    int tasks;
    int dim;

    // Every product i <= j of members first <= i < end with members j of all `size`. Each is read once for four others.
    template <int kWidth>
    __device__ __forceinline__ void add_row(const uint2* members, int size, int first, int end) const {
        for (int i = first, j = first; i < end;) {
            if (j > i) {
                add_tile<4, 2, kWidth>(members, size, end, i, j);
            } else if (size - i == 1) {
                add_tile<1, 1, kWidth>(members, size, end, i, i);
            } else if (size - i == 2) {
                add_tile<2, 2, kWidth>(members, size, end, i, i);
            } else {
                add_tile<4, 4, kWidth>(members, size, end, i, i);
            }
            j += j > i ? 2 : 4;
            if (j >= size) {
                i += 4;
                j = i;
            }
        }
    }

    // Those of kLeft members from i on, below `end`, with kRight members from j on, the same ones where there are as many. Members
    // that are not there are read as the last, and what comes of them is left out.
    template <int kLeft, int kRight, int kWidth>
    __device__ __forceinline__ void add_tile(const uint2* members, int size, int end, int i, int j) const {
        constexpr int kCells = kLeft * kRight, kLanes = kWarp / kCells;
        const float *left[kLeft], *right[kRight];
#pragma unroll
        for (int k = 0; k < kLeft; ++k) {
            left[k] = gradients + uint64_t(members[i + k < size ? i + k : size - 1].y) * dim;
        }
#pragma unroll
        for (int k = 0; k < kRight; ++k) {
            right[k] = gradients + uint64_t(members[j + k < size ? j + k : size - 1].y) * dim;
        }
        float own[kCells] = {};
        multiply<kLeft, kRight, kWidth>(own, left, right);
        double totals[kCells];
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
            totals[cell] = double(own[cell]);
        }
        scatter_sums(totals);
        i += lane_id() / kLanes / kRight;
        j += lane_id() / kLanes % kRight;
        if (lane_id() % kLanes == 0 && i < end && j < size && i <= j) {
            sums[members[i].x * tasks + members[j].x] += totals[0];
        }
        // A cell may be another lane's in the next tile.
        __syncwarp();
    }

    // This lane's part of the products. It holds 32 values of the members' rows at a time, or one vector of each: many loads are on
    // their way together.
    template <int kLeft, int kRight, int kWidth>
    __device__ __forceinline__ void multiply(float (&own)[kLeft * kRight], const float* const (&left)[kLeft],
                                             const float* const (&right)[kRight]) const {
        typedef Pack<float, kWidth> Vector;
        constexpr bool kSame = kLeft == kRight;
        constexpr int kStep = kWarp * kWidth, kHeld = kWidth * (kLeft + (kSame ? 0 : kRight));
        constexpr int kAtOnce = kHeld < 32 ? 32 / kHeld : 1;
#pragma unroll 1
        for (int start = lane_id() * kWidth; start < dim; start += kAtOnce * kStep) {
            Vector x[kAtOnce][kLeft] = {}, y[kAtOnce][kRight] = {};
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                if (start + n * kStep < dim) {
#pragma unroll
                    for (int i = 0; i < kLeft; ++i) {
                        x[n][i] = load_pack<Vector>(left[i] + start + n * kStep);
                    }
#pragma unroll
                    for (int j = 0; j < kRight; ++j) {
                        y[n][j] = kSame ? x[n][j] : load_pack<Vector>(right[j] + start + n * kStep);
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
                for (int cell = 0; cell < kLeft * kRight; ++cell) {
                    int i = cell / kRight, j = cell % kRight;
#pragma unroll
                    for (int k = 0; k < kWidth && !(kSame && j < i); ++k) {
                        own[cell] = fmaf(x[n][i].at[k], y[n][j].at[k], own[cell]);
                    }
                }
            }
        }
    }
};

}  // namespace row_gradients

// gradients row g of *count = sum over its sources e, in order, of scales[e] * dout[e]: sources[starts[g]..starts[g + 1]]. With places row
// places[g] gains the sum instead; no two are the same.
// dout (examples x dim, rows pitch_of(dim) apart) f32. grid: any, a block a row at a time.
extern "C" __global__ void __launch_bounds__(256) row_gradients_backward(float* gradients, const float* dout, const float* scales,
                                                                         const uint32_t* sources, const uint32_t* starts,
                                                                         const uint32_t* places, const uint32_t* count, int dim) {
    for (uint32_t row = blockIdx.x; row < *count; row += gridDim.x) {
        uint32_t start = starts[row], end = starts[row + 1];
        for (int column = threadIdx.x; column < dim; column += blockDim.x) {
            float sum = 0.0f;
#pragma unroll 4
            for (uint32_t at = start; at < end; ++at) {
                uint32_t example = sources[at];
                sum = fmaf(scales[example], dout[uint64_t(example) * pitch_of(dim) + column], sum);
            }
            float* out = gradients + uint64_t(places ? places[row] : row) * dim + column;
            *out = places ? *out + sum : sum;
        }
    }
}

// As row_gradients_backward of tokens, dout (tokens x dim) in bf16, dim a multiple of 8; nothing scales them. grid: (any, tiles of 256 columns).
extern "C" __global__ void __launch_bounds__(256) row_gradients_backward_bf16(float* gradients, const bf16* dout,
                                                                              const uint32_t* sources,
                                                                              const uint32_t* starts, const uint32_t* places,
                                                                              const uint32_t* count, int dim) {
    __shared__ SumRoom room;
    auto row_of = [&](uint32_t i) { return sources[i]; };
    auto factor_of = [](uint32_t) { return 1.0f; };
    int column = int(blockIdx.y) * kSumTile + int(threadIdx.x);
    for (uint32_t row = blockIdx.x; row < *count; row += gridDim.x) {
        float sum = column_of_sum(dout, dim, starts[row], starts[row + 1], row_of, factor_of, room);
        if (column < dim) {
            float* out = gradients + uint64_t(places ? places[row] : row) * dim + column;
            *out = places ? *out + sum : sum;
        }
        __syncthreads();
    }
}

// partials[blockIdx.x] (tasks x tasks) f64: upper triangle of the products on those of *union_count rows that block takes: in turn, `groups` at a
// time, so that rows of many members, which lie close together, are spread. A group of warps has sums of its own in shared memory and a
// row at a time; where the sums of eight groups do not fit there are fewer, and with groups = 0 one, which adds to the partials
// themselves. Warps of one group share out the left tasks, so that a cell belongs to one warp. grid: any.
// Shared memory: groups x tasks x tasks doubles.
extern "C" __global__ void __launch_bounds__(256, 3) row_gram(double* partials, const float* gradients, const uint32_t* starts,
                                                              const uint2* members, const uint32_t* union_count, int tasks,
                                                              int dim, int groups) {
    using namespace row_gradients;
    SHARED_DYNAMIC(double, shared);
    int count = int(*union_count);
    int cells = tasks * tasks, sets = groups ? groups : 1, sharing = kWarps / sets;
    double* partial = partials + uint64_t(blockIdx.x) * cells;
    double* sums = groups ? shared : partial;
    for (int cell = threadIdx.x; cell < sets * cells; cell += kThreads) {
        sums[cell] = 0.0;
    }
    __syncthreads();
    int group = warp_id() / sharing, share = (tasks + sharing - 1) / sharing, task = warp_id() % sharing * share;
    RowProducts products = {sums + group * cells, gradients, tasks, dim};
    bool wide = dim % 4 == 0 && uint64_t(gradients) % 16 == 0;
    for (int row = int(blockIdx.x) * sets + group; row < count; row += int(gridDim.x) * sets) {
        uint32_t start = starts[row];
        int size = int(starts[row + 1] - start), first = 0, end = size;
        if (sharing > 1) {
            first = members_below(members + start, size, task);
            end = members_below(members + start, size, task + share);
        }
        if (wide) {
            products.add_row<4>(members + start, size, first, end);
        } else {
            products.add_row<1>(members + start, size, first, end);
        }
    }
    if (!groups) {
        return;
    }
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) {
        double total = 0.0;
        for (int set = 0; set < sets; ++set) {
            total += sums[set * cells + cell];
        }
        partial[cell] = total;
    }
}

// One step on slot slots[u] of values, first (slots x dim) and second (slots x second_dim: dim, 1 under AdamW, or 0) for each union
// row u of *count: d = sum of weights[task] over its members. copy (slots x dim) bf16 of the values, or null. grid: any, a block a row at
// a time.
extern "C" __global__ void __launch_bounds__(256) row_update_weights(float* values, float* first, float* second, bf16* copy,
                                                                     int second_dim, const float* gradients, const uint32_t* slots,
                                                                     const uint32_t* starts, const uint2* members,
                                                                     const uint32_t* count, int dim, const float* weights,
                                                                     const Rates* rates, const GroupRates* groups, int group,
                                                                     const uint32_t* halted) {
    using namespace row_gradients;
    __shared__ float warps[kWarp];
    if (halted && *halted) {
        return;
    }
    Rates common = *rates;
    State state = {values, first, second, copy, second_dim, dim};
    for (uint32_t row = blockIdx.x; row < *count; row += gridDim.x) {
        uint32_t start = starts[row], end = starts[row + 1];
        auto combined = [&](int column) {
            float d = 0.0f;
            for (uint32_t at = start; at < end; ++at) {
                uint2 member = members[at];
                d = fmaf(weights[member.x], gradients[uint64_t(member.y) * dim + column], d);
            }
            return d;
        };
        if (second_dim == 1 && dim > 1) {
            step_row_single(state, common, groups[group], slots[row], warps, combined);
        } else {
            step_row(state, common, groups[group], slots[row], combined);
        }
    }
}

// As row_update_weights with the rule for columns of update_columns over all tasks; columns are numbered from `base` + table
// row * dim. Shared memory: tasks x blockDim.x doubles.
extern "C" __global__ void __launch_bounds__(256) row_update_columns(float* values, float* first, float* second, bf16* copy,
                                                                     int second_dim, const float* gradients, const uint32_t* slots,
                                                                     const uint32_t* union_rows, const uint32_t* starts,
                                                                     const uint2* members, const uint32_t* count, int tasks,
                                                                     int dim, int rule, double parameter, const double* factors,
                                                                     uint64_t seed, const uint64_t* round, uint64_t base,
                                                                     const Rates* rates, const GroupRates* groups, int group,
                                                                     const uint32_t* halted) {
    using namespace row_gradients;
    SHARED_DYNAMIC(double, shared);
    __shared__ float warps[kWarp];
    if (halted && *halted) {
        return;
    }
    Rates common = *rates;
    State state = {values, first, second, copy, second_dim, dim};
    RowRule own = {rule, parameter, factors, seed, *round, gradients, members, tasks, dim, shared + threadIdx.x};
    for (uint32_t row = blockIdx.x; row < *count; row += gridDim.x) {
        uint32_t start = starts[row], end = starts[row + 1];
        uint64_t number = base + uint64_t(union_rows[row]) * dim;
        auto combined = [&](int column) { return own.value(start, end, number, column); };
        if (second_dim == 1 && dim > 1) {
            step_row_single(state, common, groups[group], slots[row], warps, combined);
        } else {
            step_row(state, common, groups[group], slots[row], combined);
        }
    }
}

// squares (blocks) f64: squared norm of what the rule makes of `rows` of the *union_count rows from blockIdx.x * rows.
// Shared memory: tasks x blockDim.x doubles.
extern "C" __global__ void __launch_bounds__(256) row_column_squares(double* squares, const float* gradients,
                                                                     const uint32_t* union_rows, const uint32_t* starts,
                                                                     const uint2* members, const uint32_t* union_count, int rows,
                                                                     int tasks, int dim, int rule, double parameter,
                                                                     const double* factors, uint64_t seed, const uint64_t* round,
                                                                     uint64_t base) {
    using namespace row_gradients;
    SHARED_DYNAMIC(double, shared);
    __shared__ double warps[kWarp];
    RowRule own = {rule, parameter, factors, seed, *round, gradients, members, tasks, dim, shared + threadIdx.x};
    int count = int(*union_count), first = int(blockIdx.x) * rows, last = first + rows < count ? first + rows : count;
    double square = 0.0;
    for (int row = first; row < last; ++row) {
        uint64_t number = base + uint64_t(union_rows[row]) * dim;
        for (int column = threadIdx.x; column < dim; column += blockDim.x) {
            double d = double(own.value(starts[row], starts[row + 1], number, column));
            square += d * d;
        }
    }
    double total = block_sum(square, warps);
    if (threadIdx.x == 0) {
        squares[blockIdx.x] = total;
    }
}
