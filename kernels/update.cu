// The commit of a round: d from the rows of J, then the optimizer's step, in one pass that writes the f32 parameters, their
// moments and the bf16 copy that the matrix products read.
//
// The parameters are cut into chunks as for the Gram matrices; chunk c takes the weights of block `blocks[c]` and the rates of
// group `groups[c]`. 256 threads, each 4 neighbouring columns at a time (16-byte accesses).
// No shared memory in update_weights; update_columns keeps T doubles a thread of it.
// Floor: 4 (of bf16 2) T + 26 bytes a parameter (J; p, m, v read and written; the copy), T + 12 operations.
#include "jacobian.cuh"
#include "update.cuh"

namespace update {

constexpr int kThreads = 256;
constexpr int kVector = 4;

struct State {
    float* values;
    float* first;
    float* second;
    bf16* copy;
};

__device__ __forceinline__ void step_column(const State& state, const Rates& rates, const GroupRates& group, uint64_t at, float d) {
    float p = state.values[at], m = state.first[at], v = state.second ? state.second[at] : 0.0f;
    step_one(rates, group, p, m, v, d);
    state.values[at] = p;
    state.first[at] = m;
    if (state.second) {
        state.second[at] = v;
    }
    if (state.copy) {
        state.copy[at] = from_float<bf16>(p);
    }
}

__device__ __forceinline__ void step_vector(const State& state, const Rates& rates, const GroupRates& group, uint64_t at,
                                            const float (&d)[kVector]) {
    typedef Pack<float, kVector> Four;
    Four p = load_pack<Four>(state.values + at);
    Four m = load_pack<Four>(state.first + at);
    Four v = {};
    if (state.second) {
        v = load_pack<Four>(state.second + at);
    }
    Pack<bf16, kVector> copy;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
        step_one(rates, group, p.at[k], m.at[k], v.at[k], d[k]);
        copy.at[k] = from_float<bf16>(p.at[k]);
    }
    store_pack(state.values + at, p);
    store_pack(state.first + at, m);
    if (state.second) {
        store_pack(state.second + at, v);
    }
    if (state.copy) {
        store_pack(state.copy + at, copy);
    }
}

// d (4 columns) = sum_t weights[t] J[t], in task order.
template <typename T>
__device__ __forceinline__ void combine_vector(float (&d)[kVector], const T* jacobian, uint64_t stride, const float* weights,
                                               int tasks, uint64_t at) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
        d[k] = 0.0f;
    }
#pragma unroll 8
    for (int t = 0; t < tasks; ++t) {
        Pack<T, kVector> g = load_pack<Pack<T, kVector>>(jacobian + t * stride + at);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
            d[k] = fmaf(weights[t], to_float(g.at[k]), d[k]);
        }
    }
}

// A rule for columns at work: graddrop (parameter: leak) or trimmed mean (parameter: trim) on gradients scaled by factors (tasks) f64.
struct ByRule {
    int rule;
    double parameter;
    const double* factors;
    uint64_t seed, round;
    uint64_t stride;
    int tasks;
    // This thread's, of every blockDim.x doubles.
    double* column;

    template <typename T>
    __device__ __forceinline__ float operator()(const T* rows, uint64_t at) const {
        int pitch = int(blockDim.x);
        for (int t = 0; t < tasks; ++t) {
            column[t * pitch] = factors[t] * double(to_float(rows[t * stride + at]));
        }
        return float(column_value(rule, parameter, column, pitch, tasks, column_bits(seed, round, at)));
    }
};

}  // namespace update

// values, first, second (P) f32; second is null under SGD; copy (P) bf16 or null. jacobian (tasks x stride; f32, or bf16 if
// narrow): column p is that of parameter p; the stride is a multiple of 4. weights (blocks x tasks) f32 hold clipping and
// balancing. halted: null, or nonzero where the round is not finite and nothing may change. grid: chunks.
extern "C" __global__ void __launch_bounds__(256) update_weights(float* values, float* first, float* second, bf16* copy,
                                                                 const void* jacobian, uint64_t stride, int tasks,
                                                                 const float* weights, const Rates* rates,
                                                                 const GroupRates* groups, const uint64_t* firsts,
                                                                 const uint32_t* lengths, const uint32_t* chunk_blocks,
                                                                 const uint32_t* chunk_groups, int narrow, const uint32_t* halted) {
    using namespace update;
    if (halted && *halted) {
        return;
    }
    Rates common = *rates;
    State state = {values, first, second, copy};
    GroupRates group = groups[chunk_groups[blockIdx.x]];
    const float* own = weights + uint64_t(chunk_blocks[blockIdx.x]) * tasks;
    uint64_t start = firsts[blockIdx.x], end = start + lengths[blockIdx.x];
    uint64_t body = (start + kVector - 1) / kVector * kVector;
    body = body < end ? body : end;
    uint64_t tail = body + (end - body) / kVector * kVector;
    with_rows(jacobian, narrow, [&](auto rows) {
        for (uint64_t at = body + threadIdx.x * kVector; at < tail; at += kThreads * kVector) {
            float d[kVector];
            combine_vector(d, rows, stride, own, tasks, at);
            step_vector(state, common, group, at, d);
        }
        // What no whole vector covers: before `body` and from `tail` on.
        uint64_t rest = (body - start) + (end - tail);
        for (uint64_t index = threadIdx.x; index < rest; index += kThreads) {
            uint64_t at = start + index < body ? start + index : tail + (index - (body - start));
            float d = 0.0f;
            for (int t = 0; t < tasks; ++t) {
                d = fmaf(own[t], to_float(rows[t * stride + at]), d);
            }
            step_column(state, common, group, at, d);
        }
    });
}

// As update_weights, with a rule for columns. Shared memory: tasks x blockDim.x doubles.
extern "C" __global__ void __launch_bounds__(256) update_columns(float* values, float* first, float* second, bf16* copy,
                                                                 const void* jacobian, uint64_t stride, int tasks, int rule,
                                                                 double parameter, const double* factors, uint64_t seed,
                                                                 const uint64_t* round, const Rates* rates,
                                                                 const GroupRates* groups, const uint64_t* firsts,
                                                                 const uint32_t* lengths, const uint32_t* chunk_groups,
                                                                 int narrow, const uint32_t* halted) {
    using namespace update;
    SHARED_DYNAMIC(double, shared);
    if (halted && *halted) {
        return;
    }
    Rates common = *rates;
    State state = {values, first, second, copy};
    GroupRates group = groups[chunk_groups[blockIdx.x]];
    uint64_t start = firsts[blockIdx.x], end = start + lengths[blockIdx.x];
    update::ByRule by_rule = {rule, parameter, factors, seed, *round, stride, tasks, shared + threadIdx.x};
    with_rows(jacobian, narrow, [&](auto rows) {
        for (uint64_t at = start + threadIdx.x; at < end; at += blockDim.x) {
            float d = by_rule(rows, at);
            step_column(state, common, group, at, d);
        }
    });
}

// squares (chunks) f64: squared norm of the update that a rule makes of each chunk. Shared memory: tasks x blockDim.x doubles.
extern "C" __global__ void __launch_bounds__(256) column_squares(double* squares, const void* jacobian, uint64_t stride, int tasks,
                                                                 int rule, double parameter, const double* factors, uint64_t seed,
                                                                 const uint64_t* round, const uint64_t* firsts,
                                                                 const uint32_t* lengths, int narrow) {
    SHARED_DYNAMIC(double, shared);
    __shared__ double warps[kWarp];
    uint64_t start = firsts[blockIdx.x], end = start + lengths[blockIdx.x];
    update::ByRule by_rule = {rule, parameter, factors, seed, *round, stride, tasks, shared + threadIdx.x};
    double square = 0.0;
    with_rows(jacobian, narrow, [&](auto rows) {
        for (uint64_t at = start + threadIdx.x; at < end; at += blockDim.x) {
            double d = double(by_rule(rows, at));
            square += d * d;
        }
    });
    double total = block_sum(square, warps);
    if (threadIdx.x == 0) {
        squares[blockIdx.x] = total;
    }
}

// squares (segments) f64: squared norm of values[bounds[2 s] .. bounds[2 s + 1]], for the heads. grid: segments.
extern "C" __global__ void __launch_bounds__(256) segment_squares(double* squares, const float* values, const uint64_t* bounds) {
    __shared__ double warps[kWarp];
    double square = 0.0;
    for (uint64_t at = bounds[2 * blockIdx.x] + threadIdx.x; at < bounds[2 * blockIdx.x + 1]; at += blockDim.x) {
        double value = double(values[at]);
        square += value * value;
    }
    double total = block_sum(square, warps);
    if (threadIdx.x == 0) {
        squares[blockIdx.x] = total;
    }
}
