// Eigenvalues of a symmetric matrix by Jacobi's rotations, as surgery/methods/eigen.rs: a step rotates pairs that have nothing in
// common, all at once.
#pragma once

#include "linalg.cuh"

namespace solve {

constexpr int kMaxSweeps = 40;
// Scratch of `eigen`, in vectors.
constexpr int kTurns = 2;

struct Eigen {
    // (T) descending
    double* values;
    // (T x T) row order[k] is the unit eigenvector of values[k].
    double* vectors;
    int* order;
    // How many are no rounding.
    int rank;
    int size;

    __device__ __forceinline__ const double* axis(int k) const { return vectors + order[k] * size; }

    // result (T) = V f(L) V' v over the rank; lengths (T) is scratch.
    template <typename F>
    __device__ __forceinline__ void apply(const Set& set, double* result, const F& map, const double* vector, double* lengths) const {
        set.each(rank, [&](int k) { lengths[k] = map(values[k]) * dot(axis(k), vector, size); });
        set.each(size, [&](int i) {
            double sum = 0.0;
            for (int k = 0; k < rank; ++k) {
                sum += lengths[k] * axis(k)[i];
            }
            result[i] = sum;
        });
    }

    __device__ __forceinline__ void pseudo_inverse_times(const Set& set, double* result, const double* vector, double* lengths) const {
        apply(set, result, [](double value) { return 1.0 / value; }, vector, lengths);
    }
};

// The rotation of a pair p < q: cosine 0 for none.
struct Turn {
    double cosine;
    double sine;
};

// Pair number `pair` of a step in which every one of `players` (an even number) meets another; after players - 1 steps all have met.
__device__ __forceinline__ int2 pair_of(int step, int pair, int players) {
    int ring = players - 1;
    int a = pair == 0 ? ring : (step + pair) % ring, b = pair == 0 ? step : (step + ring - pair) % ring;
    return make_int2(a < b ? a : b, a < b ? b : a);
}

__device__ __forceinline__ Turn turn_of(double app, double aqq, double apq) {
    double negligible = kEpsilon * 0.1 * sqrt(fabs(app) * fabs(aqq));
    if (fabs(apq) <= fmax(negligible, 1e-300)) {
        return {0.0, 0.0};
    }
    double theta = (aqq - app) / (2.0 * apq);
    double tangent = copysign(1.0, theta) / (fabs(theta) + hypot(theta, 1.0));
    double cosine = 1.0 / hypot(tangent, 1.0);
    return {cosine, cosine * tangent};
}

__device__ __forceinline__ void rotate(const Turn& turn, double& x, double& y) {
    double first = x, second = y;
    x = turn.cosine * first - turn.sine * second;
    y = turn.sine * first + turn.cosine * second;
}

// In the order of f64::total_cmp.
__device__ __forceinline__ int64_t order_key(double value) {
    int64_t bits = bits_of<int64_t>(value);
    return bits ^ int64_t(uint64_t(bits >> 63) >> 1);
}

// For each pair of a step that turns, and each of `size` elements: body(turn, pair, element).
template <typename F>
__device__ __forceinline__ void each_turn(const Turn* turns, int step, int players, int size, const F& body) {
#pragma unroll 1
    for (int item = threadIdx.x; item < players / 2 * size; item += kThreads) {
        int pair = item / size;
        Turn turn = turns[pair];
        if (turn.cosine != 0.0) {
            body(turn, pair_of(step, pair, players), item % size);
        }
    }
    __syncthreads();
}

// One sweep over all pairs; false where all that is off the diagonal was negligible.
__device__ __forceinline__ bool sweep(double* work, double* vectors, Turn* turns, int size) {
    int players = size + size % 2, pairs = players / 2;
    bool rotated = false;
    for (int step = 0; step < players - 1; ++step) {
        bool any = false;
#pragma unroll 1
        for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
            int2 at = pair_of(step, pair, players);
            int p = at.x, q = at.y;
            Turn turn = {0.0, 0.0};
            if (q < size) {
                turn = turn_of(work[p * size + p], work[q * size + q], work[p * size + q]);
            }
            any |= turn.cosine != 0.0;
            turns[pair] = turn;
        }
        if (!__syncthreads_or(any)) {
            continue;
        }
        rotated = true;
        each_turn(turns, step, players, size, [&](const Turn& turn, int2 at, int k) {
            rotate(turn, work[k * size + at.x], work[k * size + at.y]);
        });
        each_turn(turns, step, players, size, [&](const Turn& turn, int2 at, int k) {
            double *upper = work + at.x * size + k, *lower = work + at.y * size + k;
            rotate(turn, *upper, *lower);
            *upper = k == at.y ? 0.0 : *upper;
            *lower = k == at.x ? 0.0 : *lower;
            rotate(turn, vectors[at.x * size + k], vectors[at.y * size + k]);
        });
    }
    return rotated;
}

// Of `matrix` (T x T); `work` (T x T) may be the same. Takes a matrix, and kTurns + 2 vectors.
__device__ __forceinline__ Eigen eigen(Set& set, const double* matrix, double* work) {
    int size = set.count, cells = size * size;
    Eigen found;
    found.size = size;
    found.vectors = set.matrix();
    Turn* turns = reinterpret_cast<Turn*>(set.take(kTurns * size));
    found.values = set.vector();
    found.order = set.indices();
    double largest = 0.0;
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) {
        largest = fmax(largest, fabs(matrix[cell]));
    }
    largest = block_largest(largest, set.warps);
    double scale = largest > 0.0 && isfinite(largest) ? ldexp(1.0, ilogb(largest)) : 1.0;
    set.each(cells, [&](int cell) {
        work[cell] = matrix[cell] / scale;
        found.vectors[cell] = cell / size == cell % size ? 1.0 : 0.0;
    });
    for (int count = 0; count < kMaxSweeps && sweep(work, found.vectors, turns, size); ++count) {
    }
    set.each(size, [&](int k) {
        double value = work[k * size + k];
        int64_t key = order_key(value);
        int place = 0;
        for (int other = 0; other < size; ++other) {
            int64_t than = order_key(work[other * size + other]);
            place += than > key || (than == key && other < k) ? 1 : 0;
        }
        found.values[place] = value * scale;
        found.order[place] = k;
    });
    found.rank = int(set.once([&] {
        double cut = found.values[0] * double(size) * kEpsilon;
        int rank = 0;
        while (rank < size && found.values[rank] > cut) {
            ++rank;
        }
        return double(rank);
    }));
    return found;
}

}  // namespace solve
