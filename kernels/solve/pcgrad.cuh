// PCGrad, as surgery/methods/pcgrad.rs. A thread walks a row's visits alone.
#pragma once

#include "linalg.cuh"

namespace solve {

// part (T) = e_row after the projections in `order`.
__device__ __forceinline__ void project(double* part, const double* gram, int count, int row, const uint32_t* order) {
    for (int k = 0; k < count; ++k) {
        part[k] = k == row ? 1.0 : 0.0;
    }
    for (int visit = 0; visit < count; ++visit) {
        int other = int(order[visit]);
        if (other == row) {
            continue;
        }
        double product = dot(part, gram + other * count, count);
        if (product < 0.0) {
            part[other] -= product / gram[other * count + other];
        }
    }
}

// weights (T) = the sum of the rows of `parts`.
__device__ __forceinline__ void add_rows(const Set& set, const double* parts) {
    set.each(set.count, [&](int k) {
        double sum = 0.0;
        for (int row = 0; row < set.count; ++row) {
            sum += parts[row * set.count + k];
        }
        set.weights[k] = sum;
    });
}

// Takes a matrix.
__device__ __forceinline__ void pcgrad(Set& set) {
    int count = set.count;
    double* parts = set.matrix();
    const uint32_t* orders = set.problem->orders();
    set.each(count, [&](int row) { project(parts + row * count, set.gram, count, row, orders + row * count); });
    add_rows(set, parts);
}

}  // namespace solve
