// CAGrad, as surgery/methods/cagrad.rs. Numbers: c, what the update is divided by, and norm_eps.
#pragma once

#include "eigen.cuh"
#include "line_search.cuh"

namespace solve {

constexpr double kAcceptedGap = 1e-8;
constexpr double kLeastKink = 1e-7;
constexpr double kTargetGap = 1e-12;
constexpr int kMaxSteps = 400;
constexpr int kLastSteps = 4;

// f(w) = slope . w + c |g_w| over the simplex, |g_w| = |R w|.
struct WorstCase {
    // (T x T)
    double* gram;
    double* hessian;
    // (rank x T)
    double* root;
    // (T) each
    double* slope;
    double* point;
    double* best;
    double* moved;
    double* image;
    double* product;
    double* slopes;
    double* logs;
    double* gradient;
    double* free;
    double* normal;
    double* roots;
    double* known;
    int rank;
    int size;
    double c;

    // |g_w|; R w is left in `image`.
    __device__ __forceinline__ double length(const Set& set, const double* at) const {
        set.each(rank, [&](int k) { image[k] = dot(root + k * size, at, size); });
        return set.once([&] { return sqrt(dot(image, image, rank)); });
    }

    // After `length`: G w in `product`, and the slopes of f with the kink rounded off in `slopes`.
    __device__ __forceinline__ void slopes_at(const Set& set, double norm, double kink) const {
        double scale = c / hypot(norm, kink);
        set.each(size, [&](int i) {
            double sum = 0.0;
            for (int k = 0; k < rank; ++k) {
                sum += image[k] * root[k * size + i];
            }
            product[i] = sum;
            slopes[i] = slope[i] + scale * sum;
        });
    }

    __device__ __forceinline__ double gap(const Set& set, const double* at) const {
        double norm = length(set, at);
        slopes_at(set, norm, kLeastKink);
        return set.once([&] {
            double least = slopes[0];
            for (int i = 1; i < size; ++i) {
                least = fmin(least, slopes[i]);
            }
            return dot(slope, at, size) + c * norm - least;
        });
    }

    __device__ __forceinline__ double value(const Set& set, const double* at, double barrier, double kink) const {
        set.each(size, [&](int i) { logs[i] = log(at[i]); });
        double norm = length(set, at);
        return set.once([&] { return dot(slope, at, size) + c * hypot(norm, kink) - barrier * sum_of(logs, size); });
    }

    // Newton's direction as dw / w in `free`, and the decrease it promises in `decrement`; false where there is none.
    __device__ __forceinline__ bool newton(const Set& set, double barrier, double kink, double& decrement) const {
        double norm = length(set, point);
        slopes_at(set, norm, kink);
        double radius = hypot(norm, kink), along = 1.0 + c;
        set.each(size * size, [&](int cell) {
            int i = cell / size, j = cell % size;
            double curved = gram[cell] - product[i] / radius * (product[j] / radius);
            double entry = (c / radius * curved + along) * point[i] * point[j];
            hessian[cell] = i == j ? entry + barrier : entry;
        });
        set.each(size, [&](int i) {
            gradient[i] = slopes[i] * point[i] - barrier;
            free[i] = gradient[i];
            normal[i] = point[i];
        });
        Cholesky factored = {hessian, roots, known, size};
        if (!factored.factor()) {
            return false;
        }
        factored.solve(free);
        factored.solve(normal);
        double multiplier = set.once([&] { return dot(point, free, size) / dot(point, normal, size); });
        set.each(size, [&](int i) { free[i] = multiplier * normal[i] - free[i]; });
        decrement = set.once([&] { return -dot(gradient, free, size); });
        return true;
    }

    // Moves `point`.
    __device__ __forceinline__ void line_search(const Set& set, double barrier, double kink, double decrement) const {
        Line line = {point, free, moved, size, 0.99, 1e-12};
        double step = line.first_step(set);
        double start = value(set, point, barrier, kink);
        double rounding = 4.0 * kEpsilon * (1.0 + fabs(start));
        line.search(set, step, start, decrement, rounding, [&](const double* at) { return value(set, at, barrier, kink); });
        double total = set.once([&] { return sum_of(moved, size); });
        set.each(size, [&](int i) { point[i] = moved[i] / total; });
    }

    // The best point found in `best`; its duality gap.
    __device__ __forceinline__ double minimise(const Set& set) const {
        set.each(size, [&](int i) {
            point[i] = 1.0 / size;
            best[i] = point[i];
        });
        double least = gap(set, point), barrier = 0.1 * (1.0 + c) / double(size), decrement = 0.0;
        int last_steps = kLastSteps;
        for (int steps = 0; steps < kMaxSteps; ++steps) {
            double kink = fmax(barrier, kLeastKink);
            if (!newton(set, barrier, kink, decrement)) {
                break;
            }
            line_search(set, barrier, kink, decrement);
            double found = gap(set, point);
            if (found < least) {
                least = found;
                set.each(size, [&](int i) { best[i] = point[i]; });
            }
            if (barrier * double(size) < kTargetGap * (1.0 + c)) {
                --last_steps;
                if (last_steps == 0) {
                    break;
                }
            } else if (decrement < 0.01 * barrier) {
                barrier *= 0.2;
            }
        }
        return least;
    }
};

// Takes three matrices and kTurns + 15 vectors.
__device__ __forceinline__ void cagrad(Set& set) {
    int count = set.count;
    double c = set.number(0), divisor = set.number(1), norm_eps = set.number(2), share = 1.0 / count;
    double* weights = set.weights;
    double total = trace(set);
    if (total < norm_eps || total == 0.0) {
        set.fill(weights, 0.0);
        return;
    }
    set.each(count * count, [&](int cell) { set.gram[cell] = set.gram[cell] / total; });
    WorstCase with;
    with.c = c;
    with.size = count;
    with.gram = set.gram;
    with.root = set.matrix();
    with.hessian = set.matrix();
    with.slope = set.vector();
    with.point = set.vector();
    with.best = set.vector();
    with.moved = set.vector();
    with.image = set.vector();
    with.product = set.vector();
    with.slopes = set.vector();
    with.logs = set.vector();
    with.gradient = set.vector();
    with.free = set.vector();
    with.normal = set.vector();
    with.roots = set.vector();
    with.known = set.vector();
    set.fill(with.point, share);
    double mean_norm = sqrt(quadratic(set, set.gram, with.point, with.product, count));
    if (c == 0.0 || mean_norm == 0.0) {
        set.fill(weights, share / divisor);
        return;
    }
    set.each(count, [&](int i) { with.slope[i] = with.product[i] / mean_norm; });
    Eigen found = eigen(set, set.gram, with.hessian);
    with.rank = found.rank;
    set.each(found.rank * count, [&](int cell) {
        int k = cell / count;
        with.root[cell] = found.axis(k)[cell % count] * sqrt(found.values[k]);
    });
    double gap = with.minimise(set);
    double worst_norm = with.length(set, with.best);
    bool stationary = worst_norm < norm_eps;
    if (stationary) {
        set.fill(weights, 0.0);
    } else {
        double pull = c * mean_norm / worst_norm;
        set.each(count, [&](int i) { weights[i] = (share + pull * with.best[i]) / divisor; });
        set.check();
    }
    double accepted = stationary ? fmax(kAcceptedGap, 10.0 * c * kLeastKink) : kAcceptedGap;
    if (isnan(gap) || gap > accepted) {
        set.report(kOwn, gap);
    }
}

}  // namespace solve
