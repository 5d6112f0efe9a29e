// Steps of Newton's method over positive numbers, as surgery/methods/bargain.rs and cagrad.rs have them.
#pragma once

#include "linalg.cuh"

namespace solve {

// From a point (size) along a direction, given as shares of each of its numbers.
struct Line {
    const double* point;
    const double* relative;
    // (size) where it ends
    double* moved;
    int size;
    // Most that a number loses of itself, and the shortest step that is tried.
    double most_lost;
    double shortest;

    // The first step that is tried: 1, unless a number would lose too much.
    __device__ __forceinline__ double first_step(const Set& set) const {
        double steepest = set.once([&] {
            double least = 0.0;
            for (int i = 0; i < size; ++i) {
                least = fmin(least, relative[i]);
            }
            return least;
        });
        return steepest < 0.0 ? fmin(-most_lost / steepest, 1.0) : 1.0;
    }

    // Halves the step until the value falls from `start` by a tenth of what `decrement` promises, or rounding may hide that it does.
    template <typename F>
    __device__ __forceinline__ void search(const Set& set, double step, double start, double decrement, double rounding,
                                           const F& value) const {
        for (;;) {
            set.each(size, [&](int i) { moved[i] = point[i] * (1.0 + step * relative[i]); });
            double enough = start - 0.1 * step * decrement + rounding;
            if (value(moved) <= enough || step < shortest) {
                return;
            }
            step *= 0.5;
        }
    }
};

}  // namespace solve
