// IMTL-G, as surgery/methods/imtl_g.rs.
#pragma once

#include "eigen.cuh"

namespace solve {

// Takes a matrix and kTurns + 4 vectors.
__device__ __forceinline__ void imtl_g(Set& set) {
    int count = set.count;
    double *weights = set.weights, *norms = set.vector(), *lengths = set.vector();
    double total = trace(set);
    if (total == 0.0) {
        set.fill(weights, 0.0);
        return;
    }
    set.each(count * count, [&](int cell) { set.gram[cell] = set.gram[cell] / total; });
    norms_of(set, norms);
    eigen(set, set.gram, set.gram).pseudo_inverse_times(set, weights, norms, lengths);
    double sum = set.once([&] { return sum_of(weights, count); });
    if (fabs(sum) < 1e-12) {
        set.fill(weights, 0.0);
        return;
    }
    set.each(count, [&](int i) { weights[i] = weights[i] / sum; });
    set.check();
}

}  // namespace solve
