// DualProj: the quadratic program of surgery/methods/projection.rs for the mean. Numbers: norm_eps and reg_eps.
#pragma once

#include "linalg.cuh"

namespace solve {

constexpr int kPatience = 3;

// min v'Hv over v >= u by block principal pivoting.
struct Projection {
    // (T x T) H
    double* hessian;
    // (T x T), of the free rows
    double* block;
    // (T) each
    double* preference;
    double* slope;
    double* extra;
    double* slack;
    double* values;
    double* roots;
    double* known;
    // (T) whether a row is free, which ones are, and which ones are wrongly so or not
    int* free;
    int* chosen;
    int* faults;
    int size;
    double reg_eps;

    // x with y = 0 on the free rows in `extra`, and y with x = 0 on the others in `slack`.
    __device__ __forceinline__ bool complementary(const Set& set) const {
        int rows = int(set.once([&] {
            int found = 0;
            for (int i = 0; i < size; ++i) {
                if (free[i]) {
                    chosen[found] = i;
                    ++found;
                }
            }
            return double(found);
        }));
        set.each(rows * rows, [&](int cell) { block[cell] = hessian[chosen[cell / rows] * size + chosen[cell % rows]]; });
        set.each(rows, [&](int i) { values[i] = -slope[chosen[i]]; });
        Cholesky factored = {block, roots, known, rows};
        if (!factored.factor()) {
            return false;
        }
        factored.solve(values);
        set.fill(extra, 0.0);
        set.each(rows, [&](int i) { extra[chosen[i]] = values[i]; });
        set.each(size, [&](int i) { slack[i] = free[i] ? 0.0 : dot(hessian + i * size, extra, size) + slope[i]; });
        return true;
    }

    // How many x or y are negative beyond the rounding of the solve; they are listed in `faults`.
    __device__ __forceinline__ int count_faults(const Set& set) const {
        return int(set.once([&] {
            double rounding = double(size) * kEpsilon, most = largest_size(extra, size);
            double extra_floor = -rounding * (1.0 + 0.01 / reg_eps) * fmax(most, largest_size(preference, size));
            double slack_floor = -4.0 * rounding * (largest_size(slope, size) + most);
            int found = 0;
            for (int i = 0; i < size; ++i) {
                if (free[i] ? extra[i] < extra_floor : slack[i] < slack_floor) {
                    faults[found] = i;
                    ++found;
                }
            }
            return double(found);
        }));
    }

    // Whether `extra` was found.
    __device__ __forceinline__ bool solve(const Set& set) const {
        times(set, slope, hessian, preference, size);
        set.each(size, [&](int i) { free[i] = slope[i] < 0.0; });
        int fewest = size + 1, patience = kPatience;
        for (int tries = 0; tries < 100 + 20 * size; ++tries) {
            if (!complementary(set)) {
                return false;
            }
            int found = count_faults(set);
            if (found == 0) {
                return true;
            }
            bool fewer = found < fewest, all = fewer || patience > 0;
            patience = fewer ? kPatience : patience - (all ? 1 : 0);
            fewest = fewer ? found : fewest;
            int first = all ? 0 : found - 1;
            set.each(found - first, [&](int k) { free[faults[first + k]] ^= 1; });
        }
        return false;
    }
};

// Takes a matrix and 10 vectors.
__device__ __forceinline__ void dualproj(Set& set) {
    int count = set.count;
    double norm_eps = set.number(0), total = trace(set);
    Projection with;
    with.size = count;
    with.reg_eps = set.number(1);
    with.hessian = set.gram;
    with.block = set.matrix();
    with.preference = set.vector();
    with.slope = set.vector();
    with.extra = set.vector();
    with.slack = set.vector();
    with.values = set.vector();
    with.roots = set.vector();
    with.known = set.vector();
    with.free = set.indices();
    with.chosen = set.indices();
    with.faults = set.indices();
    bool vanishes = total < norm_eps || total == 0.0;
    set.each(count * count, [&](int cell) {
        double scaled = vanishes ? 0.0 : set.gram[cell] / total;
        set.gram[cell] = cell / count == cell % count ? scaled + with.reg_eps : scaled;
    });
    set.fill(with.preference, 1.0 / count);
    if (!with.solve(set)) {
        set.take_mean();
        set.report(kOwn, 0.0);
        return;
    }
    set.each(count, [&](int i) { set.weights[i] = with.preference[i] + fmax(with.extra[i], 0.0); });
    set.check();
}

}  // namespace solve
