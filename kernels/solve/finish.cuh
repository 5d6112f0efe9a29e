// From the weights of all sets to what the update reads, by one block.
#pragma once

#include "problem.cuh"

namespace solve {

constexpr int kFinishThreads = 256;

__device__ __forceinline__ void finish(const Problem& problem, double* warps) {
    if (is_halted(problem, warps)) {
        if (threadIdx.x == 0) {
            *problem.halted = 1;
            problem.summary[2] = 0.0;
        }
        return;
    }
    int count = problem.count, items = problem.sets * count;
    double *weights = problem.weights, *factors = problem.factors;
    for (int task = threadIdx.x; task < count; task += kFinishThreads) {
        factors[task] = task_factor(problem, task);
    }
    for (int item = threadIdx.x; item < items; item += kFinishThreads) {
        weights[item] *= problem.rescale;
    }
    __syncthreads();

    // |sum_t w_t g_t|^2 = w' G w over all sets, and the heads.
    double square = 0.0;
    for (int item = threadIdx.x; item < items; item += kFinishThreads) {
        int i = item % count, first = item - i;
        const double* row = problem.gram + uint64_t(item) * count;
        for (int j = 0; j < count; ++j) {
            square += weights[item] * weights[first + j] * (row[j] * (factors[i] * factors[j]));
        }
    }
    square = fmax(block_sum(square, warps), 0.0);
    bool weighted = problem.heads_weighted;
    double heads = 0.0;
    for (int task = threadIdx.x; task < count; task += kFinishThreads) {
        double factor = factors[task] * (weighted ? weights[task] : 1.0);
        heads += factor * factor * problem.head_squares[task];
    }
    square += block_sum(heads, warps);
    double clip = problem.clip_norm > 0.0 && !problem.clip_tasks ? clip_factor(problem.clip_norm, square) : 1.0;
    for (int item = threadIdx.x; item < items; item += kFinishThreads) {
        problem.shared_factors[item] = float(weights[item] * (factors[item % count] * clip));
    }
    for (int task = threadIdx.x; task < count; task += kFinishThreads) {
        problem.head_factors[task] = float(factors[task] * (weighted ? weights[task] : 1.0) * clip);
    }
    if (threadIdx.x == 0) {
        *problem.halted = isfinite(square) ? 0 : 1;
        problem.summary[0] = sqrt(square);
        problem.summary[1] = clip;
        problem.summary[2] = isfinite(square) ? 1.0 : 0.0;
    }
}

}  // namespace solve
