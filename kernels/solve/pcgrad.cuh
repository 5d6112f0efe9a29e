// PCGrad, as surgery/methods/pcgrad.rs. A few lanes walk a row's visits, each with a share of the row's products.
#pragma once

#include "linalg.cuh"

namespace solve {

constexpr int kLanesOfRow = 8;

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

// part (T) = e_row after the projections in `order`; products (T) begins as the row of G and is left with that of the projected row. By
// the lanes of a row, of which all of a warp come here; those without a row have none of the three.
__device__ __forceinline__ void project(double* part, double* products, const uint32_t* order, const double* gram, int count, int row) {
    int lane = int(threadIdx.x) % kLanesOfRow;
    for (int visit = 0; visit < count; ++visit) {
        int other = order ? int(order[visit]) : row;
        const double* column = gram + other * count;
        double product = other == row ? 0.0 : products[other];
        double removed = product < 0.0 ? product / column[other] : 0.0;
        __syncwarp();
        if (product < 0.0) {
            for (int k = lane; k < count; k += kLanesOfRow) {
                products[k] -= removed * column[k];
            }
        }
        if (order && lane == 0) {
            part[other] = other == row ? 1.0 : 0.0 - removed;
        }
        __syncwarp();
    }
}

// Takes two matrices.
__device__ __forceinline__ void pcgrad(Set& set) {
    int count = set.count;
    double *parts = set.matrix(), *products = set.matrix();
    const uint32_t* orders = set.problem->orders();
    set.each(count * count, [&](int cell) { products[cell] = set.gram[cell]; });
    for (int first = 0; first < count; first += kThreads / kLanesOfRow) {
        int row = first + int(threadIdx.x) / kLanesOfRow, at = row * count;
        bool is_there = row < count;
        project(parts + at, products + at, is_there ? orders + at : nullptr, set.gram, count, is_there ? row : 0);
    }
    __syncthreads();
    add_rows(set, parts);
}

}  // namespace solve
