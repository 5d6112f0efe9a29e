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

// Parameters and moments of the table's slots; second_dim: dim, 1 (one moment a row) or 0.
struct State {
    float* values;
    float* first;
    float* second;
    int second_dim;
    int dim;
};

// One optimizer step of a row from d = combined(column).
template <typename Combined>
__device__ __forceinline__ void step_row(const State& state, const Rates& rates, const GroupRates& group, uint64_t slot,
                                         Combined combined) {
    for (int column = threadIdx.x; column < state.dim; column += blockDim.x) {
        uint64_t at = slot * state.dim + column;
        float v = state.second_dim ? state.second[at] : 0.0f;
        step_one(rates, group, state.values[at], state.first[at], v, combined(column));
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
        state.values[at] = fmaf(keep, state.values[at], -rate * m);
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

}  // namespace row_gradients

// gradients row g = sum over its sources e, in order, of scales[e] * dout[e]: sources[starts[g]..starts[g + 1]].
// dout (examples x dim, rows pitch_of(dim) apart) f32. grid: gradient rows, a block each.
extern "C" __global__ void __launch_bounds__(256) row_gradients_backward(float* gradients, const float* dout, const float* scales,
                                                                         const uint32_t* sources, const uint32_t* starts, int dim) {
    uint32_t start = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    for (int column = threadIdx.x; column < dim; column += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 4
        for (uint32_t at = start; at < end; ++at) {
            uint32_t example = sources[at];
            sum = fmaf(scales[example], dout[uint64_t(example) * pitch_of(dim) + column], sum);
        }
        gradients[uint64_t(blockIdx.x) * dim + column] = sum;
    }
}

// As row_gradients_backward of dout (examples x dim) bf16, dim a multiple of 8. grid: (gradient rows, tiles of 256 columns).
extern "C" __global__ void __launch_bounds__(256) row_gradients_backward_bf16(float* gradients, const bf16* dout,
                                                                              const float* scales, const uint32_t* sources,
                                                                              const uint32_t* starts, int dim) {
    __shared__ SumRoom room;
    auto row_of = [&](uint32_t i) { return sources[i]; };
    auto factor_of = [&](uint32_t i) { return scales[sources[i]]; };
    float sum = column_of_sum(dout, dim, starts[blockIdx.x], starts[blockIdx.x + 1], row_of, factor_of, room);
    int column = int(blockIdx.y) * kSumTile + int(threadIdx.x);
    if (column < dim) {
        gradients[uint64_t(blockIdx.x) * dim + column] = sum;
    }
}

// partials[blockIdx.x] (tasks x tasks) f64: upper triangle of the products on `rows` union rows from blockIdx.x * rows. A warp
// takes every 8th pair of a row's members and adds to that pair's cell, which is its own: the pairs of a row are distinct.
// Shared memory: tasks x tasks doubles where `shared_sums`; more tasks than fit there add to the partials themselves.
extern "C" __global__ void __launch_bounds__(256) row_gram(double* partials, const float* gradients, const uint32_t* starts,
                                                           const uint2* members, int count, int rows, int tasks, int dim,
                                                           int shared_sums) {
    using namespace row_gradients;
    SHARED_DYNAMIC(double, shared);
    int cells = tasks * tasks;
    double* own = partials + uint64_t(blockIdx.x) * cells;
    double* sums = shared_sums ? shared : own;
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) {
        sums[cell] = 0.0;
    }
    int first = int(blockIdx.x) * rows, last = first + rows < count ? first + rows : count;
    for (int row = first; row < last; ++row) {
        // The pair of a cell may have been another warp's on the row before.
        __syncthreads();
        uint32_t start = starts[row];
        int size = int(starts[row + 1] - start);
        for (int pair = warp_id(); pair < size * (size + 1) / 2; pair += kWarps) {
            int a = 0, rest = pair;
            while (rest >= size - a) {
                rest -= size - a;
                ++a;
            }
            uint2 left = members[start + a], right = members[start + a + rest];
            const float* x = gradients + uint64_t(left.y) * dim;
            const float* y = gradients + uint64_t(right.y) * dim;
            float sum = 0.0f;
            for (int at = lane_id(); at < dim; at += kWarp) {
                sum = fmaf(x[at], y[at], sum);
            }
            double total = warp_sum(double(sum));
            if (lane_id() == 0) {
                sums[left.x * tasks + right.x] += total;
            }
        }
    }
    if (!shared_sums) {
        return;
    }
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) {
        own[cell] = sums[cell];
    }
}

// One step on slot slots[u] of values, first (slots x dim) and second (slots x second_dim: dim, 1 under AdamW, or 0) for union
// row u: d = sum of weights[task] over its members. grid: union rows, a block each.
extern "C" __global__ void __launch_bounds__(256) row_update_weights(float* values, float* first, float* second, int second_dim,
                                                                     const float* gradients, const uint32_t* slots,
                                                                     const uint32_t* starts, const uint2* members, int dim,
                                                                     const float* weights, const Rates* rates,
                                                                     const GroupRates* groups, int group, const uint32_t* halted) {
    using namespace row_gradients;
    __shared__ float warps[kWarp];
    if (halted && *halted) {
        return;
    }
    Rates common = *rates;
    State state = {values, first, second, second_dim, dim};
    uint32_t start = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    auto combined = [&](int column) {
        float d = 0.0f;
        for (uint32_t at = start; at < end; ++at) {
            uint2 member = members[at];
            d = fmaf(weights[member.x], gradients[uint64_t(member.y) * dim + column], d);
        }
        return d;
    };
    if (second_dim == 1 && dim > 1) {
        step_row_single(state, common, groups[group], slots[blockIdx.x], warps, combined);
    } else {
        step_row(state, common, groups[group], slots[blockIdx.x], combined);
    }
}

// As row_update_weights with the rule for columns of update_columns over all tasks; columns are numbered from `base` + table
// row * dim. Shared memory: tasks x blockDim.x doubles.
extern "C" __global__ void __launch_bounds__(256) row_update_columns(float* values, float* first, float* second, int second_dim,
                                                                     const float* gradients, const uint32_t* slots,
                                                                     const uint32_t* union_rows, const uint32_t* starts,
                                                                     const uint2* members, int tasks, int dim, int rule,
                                                                     double parameter, const double* factors, uint64_t seed,
                                                                     const uint64_t* round, uint64_t base, const Rates* rates,
                                                                     const GroupRates* groups, int group, const uint32_t* halted) {
    using namespace row_gradients;
    SHARED_DYNAMIC(double, shared);
    __shared__ float warps[kWarp];
    if (halted && *halted) {
        return;
    }
    Rates common = *rates;
    State state = {values, first, second, second_dim, dim};
    RowRule own = {rule, parameter, factors, seed, *round, gradients, members, tasks, dim, shared + threadIdx.x};
    uint32_t start = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    uint64_t number = base + uint64_t(union_rows[blockIdx.x]) * dim;
    auto combined = [&](int column) { return own.value(start, end, number, column); };
    if (second_dim == 1 && dim > 1) {
        step_row_single(state, common, groups[group], slots[blockIdx.x], warps, combined);
    } else {
        step_row(state, common, groups[group], slots[blockIdx.x], combined);
    }
}

// squares (blocks) f64: squared norm of what the rule makes of `rows` union rows from blockIdx.x * rows.
// Shared memory: tasks x blockDim.x doubles.
extern "C" __global__ void __launch_bounds__(256) row_column_squares(double* squares, const float* gradients,
                                                                     const uint32_t* union_rows, const uint32_t* starts,
                                                                     const uint2* members, int count, int rows, int tasks, int dim,
                                                                     int rule, double parameter, const double* factors,
                                                                     uint64_t seed, const uint64_t* round, uint64_t base) {
    using namespace row_gradients;
    SHARED_DYNAMIC(double, shared);
    __shared__ double warps[kWarp];
    RowRule own = {rule, parameter, factors, seed, *round, gradients, members, tasks, dim, shared + threadIdx.x};
    int first = int(blockIdx.x) * rows, last = first + rows < count ? first + rows : count;
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
