// GradNorm, as surgery/methods/gradnorm.rs. Numbers: alpha and lr. State: (run tasks) logits, and (run tasks) losses of the tasks' first
// rounds, NaN before.
#pragma once

#include "db_mtl.cuh"

namespace solve {

// Takes 4 vectors.
__device__ __forceinline__ void gradnorm(Set& set) {
    int count = set.count;
    double alpha = set.number(0), lr = set.number(1), tasks = double(count);
    double *weights = set.weights, *logits = set.state, *first_losses = set.state + set.problem->run_tasks;
    double *norms = set.vector(), *rates = set.vector(), *pulls = set.vector(), *products = set.vector();
    double largest = set.once([&] {
        double most = logits[set.task(0)];
        for (int i = 1; i < count; ++i) {
            most = fmax(most, logits[set.task(i)]);
        }
        return most;
    });
    set.each(count, [&](int i) { products[i] = exp(logits[set.task(i)] - largest); });
    double total = set.once([&] { return sum_of(products, count); });
    set.each(count, [&](int i) { weights[i] = products[i] / total * tasks; });
    int bad = int(set.once([&] { return double(first_bad_loss(set)); }));
    if (bad < count) {
        set.report(kOwn, set.loss(bad));
        return;
    }
    norms_of(set, norms);
    set.each(count, [&](int i) {
        double& first = first_losses[set.task(i)];
        if (isnan(first)) {
            first = set.loss(i);
        }
        rates[i] = set.loss(i) / first;
    });
    double mean = set.once([&] { return dot(weights, norms, count); }) / tasks;
    if (mean != 0.0 && isfinite(mean)) {
        double mean_rate = set.once([&] { return sum_of(rates, count); }) / tasks;
        set.each(count, [&](int i) {
            double target = mean * pow(rates[i] / mean_rate, alpha);
            double excess = weights[i] * norms[i] - target;
            pulls[i] = excess == 0.0 ? 0.0 : copysign(1.0, excess) * norms[i] / mean;
        });
        double common = set.once([&] { return dot(weights, pulls, count); }) / tasks;
        set.each(count, [&](int i) { logits[set.task(i)] -= lr * weights[i] * (pulls[i] - common); });
    }
    set.check();
}

}  // namespace solve
