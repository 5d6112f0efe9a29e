// ConFIG, as surgery/methods/config.rs.
#pragma once

#include "eigen.cuh"

namespace solve {

constexpr double kShortest = 1e-12;

// Takes two matrices and kTurns + 8 vectors.
__device__ __forceinline__ void config(Set& set) {
    int count = set.count;
    double *cosines = set.gram, *work = set.matrix();
    double *norms = set.vector(), *inverse = set.vector(), *ones = set.vector(), *parts = set.vector();
    double *products = set.vector(), *lengths = set.vector();
    norms_of(set, norms);
    set.each(count, [&](int i) {
        inverse[i] = norms[i] > 0.0 ? 1.0 / norms[i] : 0.0;
        ones[i] = 1.0;
    });
    set.each(count * count, [&](int cell) { cosines[cell] = cosines[cell] * inverse[cell / count] * inverse[cell % count]; });
    eigen(set, cosines, work).pseudo_inverse_times(set, parts, ones, lengths);
    double length = fmax(sqrt(quadratic(set, cosines, parts, products, count)), kShortest);
    double gain = set.once([&] { return dot(norms, products, count); }) / length;
    set.each(count, [&](int i) { set.weights[i] = gain * parts[i] * inverse[i] / length; });
    set.check();
}

}  // namespace solve
