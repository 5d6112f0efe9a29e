// What the kernels of solve.cu are given, and what every method begins and ends with.
#pragma once

#include "common.cuh"

namespace solve {

constexpr int kThreads = 128;
constexpr double kEpsilon = 2.2204460492503131e-16;

// What becomes of a set; from kOwn on the method's own reasons to fall back, in the order of its `fallbacks`.
enum Code { kOk = 0, kNotFinite = 1, kOwn = 2 };

// A round of T tasks with one or several sets of weights, as in ops/solve.rs. Behind it lie observed (T) f64, tasks (T) u32 and
// orders (T x T) u32, which methods without visits do not have.
struct Problem {
    // (sets x T T)
    const double* gram;
    // (T) sums of losses, over `observed` targets each, or the sum of their classes' weights
    const double* losses;
    // (T)
    const double* head_squares;
    // (sets x T), without clipping
    double* weights;
    // (T) task clipping
    double* factors;
    // (sets x T) and (T), for the update
    float* shared_factors;
    float* head_factors;
    // Norm of the update, clip, 0/1 all finite.
    double* summary;
    // (sets x 2) a code, and the value that belongs to it
    double* statuses;
    // Set where the update must not happen; stays so until the host clears it.
    uint32_t* halted;
    // (sets x state_size) what the method remembers
    double* state;
    // (sets x scratch_size)
    double* scratch;
    // The method's parameters.
    double numbers[3];
    // On the weights, between sum and mean.
    double rescale;
    // 0: none.
    double clip_norm;
    int sets;
    int count;
    int run_tasks;
    int state_size;
    int scratch_size;
    // Clip each task's gradient rather than the update.
    int clip_tasks;
    // Heads take their task's weight, of the only set.
    int heads_weighted;
    int unused;

    __device__ __forceinline__ const double* observed() const { return reinterpret_cast<const double*>(this + 1); }
    // Run-wide indices.
    __device__ __forceinline__ const uint32_t* tasks() const { return reinterpret_cast<const uint32_t*>(observed() + count); }
    // Whom each row visits, in order.
    __device__ __forceinline__ const uint32_t* orders() const { return tasks() + count; }

    // Square of a task's whole gradient.
    __device__ __forceinline__ double square(int task) const {
        double sum = head_squares[task];
        for (int set = 0; set < sets; ++set) {
            sum += gram[uint64_t(set) * count * count + task * count + task];
        }
        return sum;
    }
};

__device__ __forceinline__ double clip_factor(double limit, double square) {
    double norm = sqrt(square);
    return norm > limit ? limit / norm : 1.0;
}

__device__ __forceinline__ double task_factor(const Problem& problem, int task) {
    bool clipped = problem.clip_norm > 0.0 && problem.clip_tasks;
    return clipped ? clip_factor(problem.clip_norm, problem.square(task)) : 1.0;
}

// Whether anything is not finite, or was not before; the same on every thread.
__device__ __forceinline__ bool is_halted(const Problem& problem, double* warps) {
    double bad = *problem.halted;
    for (int task = threadIdx.x; task < problem.count; task += blockDim.x) {
        bad += isfinite(problem.square(task)) && isfinite(problem.losses[task]) ? 0.0 : 1.0;
    }
    return block_sum(bad, warps) > 0.0;
}

// One set of weights, which a block of kThreads solves.
//
// Matrices and vectors lie in global memory, which the first-level cache holds. Every element is computed by one thread, in the order
// of the host's loops; routines begin and end with all of the block's writes seen.
struct Set {
    const Problem* problem;
    int count;
    // (T x T) products of the clipped gradients; the method may change it.
    double* gram;
    // (T) to be found
    double* weights;
    double* state;
    // What is left of the scratch.
    double* free;
    // A double for each warp, in shared memory.
    double* warps;

    __device__ __forceinline__ double number(int at) const { return problem->numbers[at]; }
    // Of a present task, run-wide.
    __device__ __forceinline__ int task(int row) const { return int(problem->tasks()[row]); }
    __device__ __forceinline__ double loss(int row) const {
        double observed = problem->observed()[row];
        return observed > 0.0 ? problem->losses[row] / observed : 0.0;
    }

    __device__ __forceinline__ double* take(int size) {
        double* taken = free;
        free += size;
        return taken;
    }
    // Scratch of (T x T) and (T).
    __device__ __forceinline__ double* matrix() { return take(count * count); }
    __device__ __forceinline__ double* vector() { return take(count); }
    __device__ __forceinline__ int* indices() { return reinterpret_cast<int*>(vector()); }

    // What the first thread computes, on every thread.
    template <typename F>
    __device__ __forceinline__ double once(const F& compute) const {
        __syncthreads();
        if (threadIdx.x == 0) {
            warps[0] = compute();
        }
        __syncthreads();
        return warps[0];
    }

    // Does something for each of `size` elements, its own thread's writes apart without order; then all see it.
    template <typename F>
    __device__ __forceinline__ void each(int size, const F& body) const {
#pragma unroll 1
        for (int at = threadIdx.x; at < size; at += kThreads) {
            body(at);
        }
        __syncthreads();
    }

    __device__ __forceinline__ void fill(double* values, double value) const {
        each(count, [&](int i) { values[i] = value; });
    }

    // What became of it, where it is not kOk.
    __device__ __forceinline__ void report(int code, double value) const {
        if (threadIdx.x == 0) {
            double* status = problem->statuses + 2 * blockIdx.x;
            status[0] = code;
            status[1] = value;
        }
    }

    __device__ __forceinline__ void take_mean() const { fill(weights, 1.0 / count); }

    // The mean in place of weights that are not finite; whether they are.
    __device__ __forceinline__ bool check() const {
        bool bad = false;
        for (int i = threadIdx.x; i < count; i += kThreads) {
            bad |= !isfinite(weights[i]);
        }
        if (!__syncthreads_or(bad)) {
            return true;
        }
        take_mean();
        report(kNotFinite, 0.0);
        return false;
    }
};

// Lays out this block's set; false where the round is halted, which then changes nothing.
__device__ __forceinline__ bool begin(Set& set, const Problem* problem, double* warps) {
    if (is_halted(*problem, warps)) {
        return false;
    }
    int count = problem->count, cells = count * count;
    uint64_t number = blockIdx.x;
    const double* gram = problem->gram + number * cells;
    set.problem = problem;
    set.count = count;
    set.weights = problem->weights + number * count;
    set.state = problem->state + number * problem->state_size;
    set.free = problem->scratch + number * problem->scratch_size;
    set.warps = warps;
    set.gram = set.matrix();
    double* factors = set.weights;
    set.each(count, [&](int task) { factors[task] = task_factor(*problem, task); });
    set.each(cells, [&](int cell) { set.gram[cell] = gram[cell] * (factors[cell / count] * factors[cell % count]); });
    set.report(kOk, 0.0);
    return true;
}

// A method's kernel.
template <void (*kMethod)(Set&)>
__device__ __forceinline__ void run(const Problem* problem) {
    __shared__ double warps[kWarp];
    Set set;
    if (begin(set, problem, warps)) {
        kMethod(set);
    }
}

}  // namespace solve
