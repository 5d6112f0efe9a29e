// DB-MTL, as surgery/methods/db_mtl.rs.
#pragma once

#include "linalg.cuh"

namespace solve {

// The first row whose loss is not positive, by one thread; T for none.
__device__ __forceinline__ int first_bad_loss(const Set& set) {
    int row = 0;
    while (row < set.count && set.loss(row) > 0.0 && isfinite(set.loss(row))) {
        ++row;
    }
    return row;
}

// Takes a vector.
__device__ __forceinline__ void db_mtl(Set& set) {
    int count = set.count;
    double* norms = set.vector();
    norms_of(set, norms);
    int bad = int(set.once([&] { return double(first_bad_loss(set)); }));
    double longest = set.once([&] {
        double most = 0.0;
        for (int i = 0; i < count; ++i) {
            most = fmax(most, bad == count ? norms[i] / set.loss(i) : norms[i]);
        }
        return most;
    });
    set.each(count, [&](int i) { set.weights[i] = norms[i] > 0.0 ? longest / norms[i] : 0.0; });
    if (set.check() && bad < count) {
        set.report(kOwn, set.loss(bad));
    }
}

}  // namespace solve
