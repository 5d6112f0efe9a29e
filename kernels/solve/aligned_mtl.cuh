// Aligned-MTL, as surgery/methods/aligned_mtl.rs. Number: the scale mode.
#pragma once

#include "eigen.cuh"

namespace solve {

enum ScaleMode { kMin = 0, kMedian = 1, kRmse = 2 };

// Takes a matrix and kTurns + 4 vectors.
__device__ __forceinline__ void aligned_mtl(Set& set) {
    int mode = int(set.number(0));
    double *mean = set.vector(), *lengths = set.vector();
    set.fill(mean, 1.0 / set.count);
    Eigen found = eigen(set, set.gram, set.gram);
    if (found.rank == 0) {
        set.take_mean();
        return;
    }
    double square = set.once([&] {
        if (mode == kRmse) {
            return sum_of(found.values, found.rank) / double(found.rank);
        }
        return found.values[mode == kMedian ? found.rank / 2 : found.rank - 1];
    });
    found.apply(set, set.weights, [&](double value) { return sqrt(square / value); }, mean, lengths);
    set.check();
}

}  // namespace solve
