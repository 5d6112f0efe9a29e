// GradVac, as surgery/methods/gradvac.rs. Numbers: beta and eps. State: (run tasks x run tasks) targets. A thread walks a row's
// visits alone.
#pragma once

#include "pcgrad.cuh"

namespace solve {

// a / b, and 0 where both vanish.
__device__ __forceinline__ double ratio(double a, double b) { return b == 0.0 ? 0.0 : a / b; }

__device__ __forceinline__ double sine_of(double cosine) { return sqrt(fmax(1.0 - cosine * cosine, 0.0)); }

// part (T) = e_row after its visits; products (T) is scratch.
__device__ __forceinline__ void vaccinate(const Set& set, double* part, double* products, int row) {
    int count = set.count;
    double beta = set.number(0), eps = set.number(1);
    double* targets = set.state + uint64_t(set.task(row)) * set.problem->run_tasks;
    const uint32_t* order = set.problem->orders() + row * count;
    for (int k = 0; k < count; ++k) {
        part[k] = k == row ? 1.0 : 0.0;
        products[k] = set.gram[row * count + k];
    }
    for (int visit = 0; visit < count; ++visit) {
        int other = int(order[visit]);
        if (other == row) {
            continue;
        }
        const double* column = set.gram + other * count;
        double length = sqrt(fmax(dot(products, part, count), 0.0));
        double norm = sqrt(fmax(column[other], 0.0));
        double cosine = ratio(products[other], length * norm + eps);
        double target = targets[set.task(other)];
        if (cosine < target) {
            double lift = length * (target * sine_of(cosine) - cosine * sine_of(target));
            double added = ratio(lift, norm * sine_of(target) + eps);
            part[other] += added;
            for (int k = 0; k < count; ++k) {
                products[k] += added * column[k];
            }
        }
        targets[set.task(other)] = (1.0 - beta) * target + beta * cosine;
    }
}

// Takes two matrices.
__device__ __forceinline__ void gradvac(Set& set) {
    int count = set.count;
    double *parts = set.matrix(), *products = set.matrix();
    set.each(count, [&](int row) { vaccinate(set, parts + row * count, products + row * count, row); });
    add_rows(set, parts);
    set.check();
}

}  // namespace solve
