// FairGrad, as surgery/methods/fairgrad.rs. Number: alpha.
#pragma once

#include "bargain.cuh"

namespace solve {

__device__ __forceinline__ void fairgrad(Set& set) {
    double alpha = set.number(0);
    if (alpha == 0.0) {
        set.take_mean();
        return;
    }
    Bargained found = bargain(set, 1.0 / alpha);
    if (found == kNone) {
        set.take_mean();
        set.report(kOwn, 0.0);
    } else if (set.check() && found == kRidged) {
        set.report(kOwn + 1, 0.0);
    }
}

}  // namespace solve
