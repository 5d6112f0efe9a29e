// Nash-MTL, as surgery/methods/nash_mtl.rs. Numbers: max_norm and update_every. State: rounds solved, and (run tasks) the last bargain,
// NaN for who took no part in it.
#pragma once

#include "bargain.cuh"

namespace solve {

// Takes a vector beside what `bargain` takes.
__device__ __forceinline__ void nash_mtl(Set& set) {
    int count = set.count;
    double max_norm = set.number(0), rounds = set.state[0];
    double *weights = set.weights, *agreed = set.state + 1, *products = set.vector();
    bool due = uint64_t(rounds) % uint64_t(set.number(1)) == 0;
    bool missing = false;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        weights[i] = agreed[set.task(i)];
        missing |= isnan(weights[i]);
    }
    int code = kOk;
    if (__syncthreads_or(due || missing)) {
        Bargained found = bargain(set, 1.0);
        if (found == kNone) {
            set.take_mean();
            code = kOwn;
        } else {
            double nobody = Bargain::nan_value();
            set.each(set.problem->run_tasks, [&](int task) { agreed[task] = nobody; });
            set.each(count, [&](int i) { agreed[set.task(i)] = weights[i]; });
            code = found == kRidged ? kOwn + 1 : kOk;
        }
    }
    if (threadIdx.x == 0) {
        set.state[0] = rounds + 1.0;
    }
    double norm = sqrt(quadratic(set, set.gram, weights, products, count));
    if (max_norm > 0.0 && norm > max_norm) {
        double factor = max_norm / norm;
        set.each(count, [&](int i) { weights[i] *= factor; });
    }
    if (code == kOk) {
        set.check();
    } else {
        set.report(code, 0.0);
    }
}

}  // namespace solve
