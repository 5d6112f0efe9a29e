// MGDA by Frank-Wolfe, as surgery/methods/mgda.rs. Numbers: epsilon and the most steps.
#pragma once

#include "linalg.cuh"

namespace solve {

// Step from u toward v that makes the vector shortest, from u.v, u.u and v.v.
__device__ __forceinline__ double shortest_step(double cross, double from, double to) {
    if (to <= cross) {
        return 1.0;
    }
    return from <= cross ? 0.0 : (from - cross) / (from + to - 2.0 * cross);
}

__device__ __forceinline__ int first_least(const double* values, int size) {
    int least = 0;
    for (int i = 1; i < size; ++i) {
        least = values[i] < values[least] ? i : least;
    }
    return least;
}

// Takes a vector.
__device__ __forceinline__ void mgda(Set& set) {
    int count = set.count;
    double epsilon = set.number(0), most = set.number(1);
    double *weights = set.weights, *products = set.vector();
    set.take_mean();
    for (double steps = 0.0; steps < most; steps += 1.0) {
        times(set, products, set.gram, weights, count);
        int vertex = int(set.once([&] { return double(first_least(products, count)); }));
        double step = set.once([&] {
            return shortest_step(products[vertex], dot(weights, products, count), set.gram[vertex * count + vertex]);
        });
        set.each(count, [&](int i) {
            double kept = weights[i] * (1.0 - step);
            weights[i] = i == vertex ? kept + step : kept;
        });
        if (step < epsilon) {
            break;
        }
    }
    set.check();
}

}  // namespace solve
