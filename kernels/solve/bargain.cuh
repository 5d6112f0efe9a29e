// The bargaining equation G a = a^(-p), as surgery/methods/bargain.rs.
#pragma once

#include "linalg.cuh"

namespace solve {

constexpr double kRidge = 1e-8;
constexpr int kBargainSteps = 200;
constexpr double kLargestCancellation = 1e10;
constexpr double kMostLost = 0.95;
constexpr double kShortestStep = 1e-10;

enum Bargained { kSolved, kRidged, kNone };

// Of the rows that are not zero, `size` of them.
struct Bargain {
    // (size x size)
    double* gram;
    double* hessian;
    // (size) each
    double* point;
    double* moved;
    double* relative;
    double* gradient;
    double* product;
    double* pull;
    double* roots;
    double* known;
    int size;
    double power;

    __device__ __forceinline__ double square(int i) const { return gram[i * size + i]; }

    // a'Ga / 2 - sum phi(a)
    __device__ __forceinline__ double value(const Set& set, const double* at) const {
        set.each(size, [&](int i) { pull[i] = power == 1.0 ? log(at[i]) : pow(at[i], 1.0 - power) / (1.0 - power); });
        double half = 0.5 * quadratic(set, gram, at, product, size);
        return half - set.once([&] { return sum_of(pull, size); });
    }

    // Newton's direction as da / a, in `relative`; the decrease it promises, or NaN where there is no direction.
    __device__ __forceinline__ double direction(const Set& set) const {
        set.each(size, [&](int i) {
            pull[i] = pow(point[i], 1.0 - power);
            gradient[i] = dot(gram + i * size, point, size) * point[i] - pull[i];
            relative[i] = -gradient[i];
        });
        set.each(size * size, [&](int cell) {
            int i = cell / size, j = cell % size;
            double curved = gram[cell] * point[i] * point[j];
            hessian[cell] = i == j ? curved + power * pull[i] : curved;
        });
        Cholesky factored = {hessian, roots, known, size};
        if (!factored.factor()) {
            return nan_value();
        }
        factored.solve(relative);
        return set.once([&] { return -dot(gradient, relative, size); });
    }

    __device__ __forceinline__ static double nan_value() { return bits_of<double>(uint64_t(0x7ff8000000000000ull)); }

    // From `point` to `moved`: halves the step, which loses no number more than kMostLost of itself, until the value falls by a tenth of what
    // `decrement` promises, or rounding may hide that it does.
    __device__ __forceinline__ void line_search(const Set& set, double decrement) const {
        double steepest = set.once([&] {
            double least = 0.0;
            for (int i = 0; i < size; ++i) {
                least = fmin(least, relative[i]);
            }
            return least;
        });
        double step = steepest < 0.0 ? fmin(-kMostLost / steepest, 1.0) : 1.0;
        double start = value(set, point);
        double parts = set.once([&] {
            double sum = 0.0;
            for (int i = 0; i < size; ++i) {
                sum += square(i) * point[i] * point[i];
            }
            return sum;
        });
        double rounding = 4.0 * kEpsilon * double(size) * (1.0 + fabs(start) + parts);
        for (;; step *= 0.5) {
            set.each(size, [&](int i) { moved[i] = point[i] * (1.0 + step * relative[i]); });
            if (value(set, moved) <= start - 0.1 * step * decrement + rounding || step < kShortestStep) {
                return;
            }
        }
    }

    // The solution in `point`; false where there is none that f64 can hold.
    __device__ __forceinline__ bool newton(const Set& set) const {
        set.each(size, [&](int i) { point[i] = pow(square(i), -1.0 / (1.0 + power)); });
        double length = quadratic(set, gram, point, product, size);
        if (length > 0.0) {
            set.each(size, [&](int i) { pull[i] = pow(point[i], 1.0 - power); });
            double target = set.once([&] { return sum_of(pull, size); });
            double multiple = pow(target / length, 1.0 / (1.0 + power));
            set.each(size, [&](int i) { point[i] *= multiple; });
        }
        for (int steps = 0; steps < kBargainSteps; ++steps) {
            double decrement = direction(set);
            if (isnan(decrement)) {
                return false;
            }
            double largest = set.once([&] { return largest_size(relative, size); });
            line_search(set, decrement);
            set.each(size, [&](int i) {
                point[i] = moved[i];
                pull[i] = square(i) * pow(moved[i], 1.0 + power);
            });
            double cancellation = set.once([&] { return largest_size(pull, size); });
            if (cancellation > kLargestCancellation) {
                return false;
            }
            if (largest < fmax(1e-15 * double(size) * cancellation, 1e-9)) {
                return true;
            }
        }
        return false;
    }
};

// The solution as the set's weights, unless there is none. Takes two matrices and 9 vectors.
__device__ __forceinline__ Bargained bargain(Set& set, double power) {
    int count = set.count;
    Bargain with;
    with.power = power;
    with.gram = set.matrix();
    with.hessian = set.matrix();
    int* rows = set.indices();
    with.point = set.vector();
    with.moved = set.vector();
    with.relative = set.vector();
    with.gradient = set.vector();
    with.product = set.vector();
    with.pull = set.vector();
    with.roots = set.vector();
    with.known = set.vector();
    int size = int(set.once([&] {
        int found = 0;
        for (int i = 0; i < count; ++i) {
            if (set.gram[i * count + i] > 0.0) {
                rows[found] = i;
                ++found;
            }
        }
        return double(found);
    }));
    if (size == 0) {
        set.fill(set.weights, 0.0);
        return kSolved;
    }
    with.size = size;
    double scale = set.once([&] {
        double most = 0.0;
        for (int i = 0; i < count; ++i) {
            most = fmax(most, set.gram[i * count + i]);
        }
        return most;
    });
    bool solved = false;
    int tries = 0;
    for (; tries < 2 && !solved; ++tries) {
        bool ridged = tries > 0;
        set.each(size * size, [&](int cell) {
            int i = cell / size, j = cell % size;
            double product = set.gram[rows[i] * count + rows[j]] / scale;
            with.gram[cell] = ridged && i == j ? product * (1.0 + kRidge) : product;
        });
        solved = with.newton(set);
    }
    if (!solved) {
        return kNone;
    }
    double unit = pow(scale, -1.0 / (1.0 + power));
    set.fill(set.weights, 0.0);
    set.each(size, [&](int i) { set.weights[rows[i]] = with.point[i] * unit; });
    return tries > 1 ? kRidged : kSolved;
}

}  // namespace solve
