// Small dense algebra on row-major matrices, as surgery/methods/linalg.rs.
#pragma once

#include "problem.cuh"

namespace solve {

// By one thread. A call keeps the loop, which stands in many places, from being written out in each.
__device__ __noinline__ double dot(const double* left, const double* right, int size) {
    double sum = 0.0;
    for (int i = 0; i < size; ++i) {
        sum += left[i] * right[i];
    }
    return sum;
}

// By one thread.
__device__ __noinline__ double sum_of(const double* values, int size) {
    double sum = 0.0;
    for (int i = 0; i < size; ++i) {
        sum += values[i];
    }
    return sum;
}

// The size of the largest of some values, by one thread.
__device__ __forceinline__ double largest_size(const double* values, int size) {
    double most = 0.0;
    for (int i = 0; i < size; ++i) {
        most = fmax(most, fabs(values[i]));
    }
    return most;
}

// out (size) = M v
__device__ __forceinline__ void times(const Set& set, double* out, const double* matrix, const double* vector, int size) {
    set.each(size, [&](int row) { out[row] = dot(matrix + row * size, vector, size); });
}

// v' M v, at least 0. product (size) is left with M v.
__device__ __forceinline__ double quadratic(const Set& set, const double* matrix, const double* vector, double* product, int size) {
    times(set, product, matrix, vector, size);
    return set.once([&] { return fmax(dot(vector, product, size), 0.0); });
}

__device__ __forceinline__ double trace(const Set& set) {
    return set.once([&] {
        double sum = 0.0;
        for (int i = 0; i < set.count; ++i) {
            sum += set.gram[i * set.count + i];
        }
        return sum;
    });
}

// norms (T) of the gradients.
__device__ __forceinline__ void norms_of(const Set& set, double* norms) {
    set.each(set.count, [&](int i) { norms[i] = sqrt(fmax(set.gram[i * set.count + i], 0.0)); });
}

// M = L L' of a symmetric positive definite matrix (size x size).
struct Cholesky {
    // Below the diagonal L; M where it is not factored yet.
    double* lower;
    // (size) the diagonal of L
    double* roots;
    // (size) scratch
    double* known;
    int size;

    // False where a pivot is not positive.
    __device__ __forceinline__ bool factor() const {
        for (int column = 0; column < size; ++column) {
            const double* head = lower + column * size;
            bool bad = false;
#pragma unroll 1
            for (int row = column + threadIdx.x; row < size; row += kThreads) {
                double* own = lower + row * size;
                double pivot = head[column] - dot(head, head, column);
                bad |= !(pivot > 0.0 && isfinite(pivot));
                double root = sqrt(pivot);
                if (row == column) {
                    roots[column] = root;
                } else {
                    own[column] = (own[column] - dot(own, head, column)) / root;
                }
            }
            if (__syncthreads_or(bad)) {
                return false;
            }
        }
        return true;
    }

    // values <- M^-1 values. Each thread adds up what is known of its rows while the rows above, or below, are found.
    __device__ __forceinline__ void solve(double* values) const {
        for (int row = threadIdx.x; row < size; row += kThreads) {
            known[row] = 0.0;
            if (row == 0) {
                values[0] = values[0] / roots[0];
            }
        }
        __syncthreads();
        for (int column = 0; column + 1 < size; ++column) {
#pragma unroll 1
            for (int row = threadIdx.x; row < size; row += kThreads) {
                if (row > column) {
                    known[row] += lower[row * size + column] * values[column];
                }
                if (row == column + 1) {
                    values[row] = (values[row] - known[row]) / roots[row];
                }
            }
            __syncthreads();
        }
        for (int row = threadIdx.x; row < size; row += kThreads) {
            known[row] = 0.0;
            if (row == size - 1) {
                values[row] = values[row] / roots[row];
            }
        }
        __syncthreads();
        for (int column = size - 1; column > 0; --column) {
#pragma unroll 1
            for (int row = threadIdx.x; row < size; row += kThreads) {
                if (row < column) {
                    known[row] += lower[column * size + row] * values[column];
                }
                if (row == column - 1) {
                    values[row] = (values[row] - known[row]) / roots[row];
                }
            }
            __syncthreads();
        }
    }
};

}  // namespace solve
