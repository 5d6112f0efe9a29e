// Surgery and clipping on the device: from Gram matrices to one factor per block and task, in f64, so that a round needs no
// read by the host. As surgery/methods/pcgrad.rs, gradvac.rs and train/solve.rs.
//
// One block of 256 threads; (block of columns, row) pairs are shared out over the threads, each walks its row's visits alone.
// `parts` and `products` are (blocks x tasks x tasks) doubles of global scratch, which the first-level cache holds.
// Floor: T^3 multiply-adds and T^2 doubles a block: microseconds, bound by latency.
#include "update.cuh"

namespace solve {

constexpr int kThreads = 256;

enum Method { kSum = 0, kPcGrad = 1, kGradVac = 2 };

// a / b, and 0 where both vanish.
__device__ __forceinline__ double ratio(double a, double b) { return b == 0.0 ? 0.0 : a / b; }

__device__ __forceinline__ double sine(double cosine) { return sqrt(fmax(1.0 - cosine * cosine, 0.0)); }

struct Products {
    // (T x T), scaled by factors[i] * factors[j] when read
    const double* gram;
    const double* factors;
    int tasks;

    __device__ __forceinline__ double at(int i, int j) const { return gram[i * tasks + j] * (factors[i] * factors[j]); }
};

// part (T) = e_row after the projections in `order`.
__device__ __forceinline__ void project(double* part, const Products& g, int row, const uint32_t* order) {
    for (int visit = 0; visit < g.tasks; ++visit) {
        int other = int(order[visit]);
        if (other == row) {
            continue;
        }
        double product = 0.0;
        for (int k = 0; k < g.tasks; ++k) {
            product += part[k] * g.at(other, k);
        }
        if (product < 0.0) {
            part[other] -= product / g.at(other, other);
        }
    }
}

// part (T) = e_row after the visits in `order`; targets: the row's (run tasks) moving cosines. products (T) is scratch.
__device__ __forceinline__ void vaccinate(double* part, double* products, double* targets, const Products& g, int row,
                                          const uint32_t* order, const uint32_t* tasks, double beta, double eps) {
    for (int k = 0; k < g.tasks; ++k) {
        products[k] = g.at(row, k);
    }
    for (int visit = 0; visit < g.tasks; ++visit) {
        int other = int(order[visit]);
        if (other == row) {
            continue;
        }
        double square = 0.0;
        for (int k = 0; k < g.tasks; ++k) {
            square += products[k] * part[k];
        }
        double length = sqrt(fmax(square, 0.0));
        double norm = sqrt(fmax(g.at(other, other), 0.0));
        double cosine = ratio(products[other], length * norm + eps);
        double target = targets[tasks[other]];
        if (cosine < target) {
            double lift = length * (target * sine(cosine) - cosine * sine(target));
            double added = ratio(lift, norm * sine(target) + eps);
            part[other] += added;
            for (int k = 0; k < g.tasks; ++k) {
                products[k] += added * g.at(other, k);
            }
        }
        targets[tasks[other]] = (1.0 - beta) * target + beta * cosine;
    }
}

__device__ __forceinline__ double clip_factor(double limit, double square) {
    double norm = sqrt(square);
    return norm > limit ? limit / norm : 1.0;
}

}  // namespace solve

// In: gram (blocks x T x T); orders (blocks x T x T) u32, row i's visits; tasks (T) run-wide indices; balance (T) f64 factors
// on the tasks' gradients; losses (T) f64; head_squares (T) f64. targets (blocks x run_tasks x run_tasks) f64: GradVac's state,
// else null. rescale: on the weights (sum <-> mean). clip_norm 0: none; clip_tasks: each task's gradient rather than the update.
// heads_weighted: heads take their task's weight (of the only block).
// Out: weights (blocks x T) f64 without balancing and clipping; factors (T) f64 balancing and task clipping;
// shared_factors (blocks x T) f32 for update_weights; head_factors (T) f32; summary (4) f64: norm of the update, clip, 0/1 all
// finite, number of conflicting pairs; halted (1) u32: whether the update must not happen. If anything is not finite only
// `summary` and `halted` change. What is halted stays so until the host clears it: a round that was given to the device before the
// host had read the one before changes nothing either.
extern "C" __global__ void __launch_bounds__(256) surgery_solve(
    double* weights, double* factors, float* shared_factors, float* head_factors, double* summary, uint32_t* halted,
    double* targets, double* parts, double* products, const double* gram, const uint32_t* orders, const uint32_t* tasks, const double* balance,
    const double* losses, const double* head_squares, int method, int blocks, int count, int run_tasks, double beta, double eps,
    double rescale, double clip_norm, int clip_tasks, int heads_weighted) {
    using namespace solve;
    __shared__ double warps[kWarp];
    uint64_t cells = uint64_t(count) * count;

    double bad = *halted;
    for (int t = threadIdx.x; t < count; t += kThreads) {
        double square = head_squares[t];
        for (int block = 0; block < blocks; ++block) {
            square += gram[block * cells + t * count + t];
        }
        bad += isfinite(square) && isfinite(losses[t]) ? 0.0 : 1.0;
    }
    bad = block_sum(bad, warps);
    if (bad > 0.0) {
        if (threadIdx.x == 0) {
            *halted = 1;
            summary[2] = 0.0;
        }
        return;
    }

    for (int t = threadIdx.x; t < count; t += kThreads) {
        double factor = balance[t];
        if (clip_norm > 0.0 && clip_tasks) {
            double square = head_squares[t];
            for (int block = 0; block < blocks; ++block) {
                square += gram[block * cells + t * count + t];
            }
            factor *= clip_factor(clip_norm, factor * factor * square);
        }
        factors[t] = factor;
    }
    __syncthreads();

    for (int item = threadIdx.x; item < blocks * count; item += kThreads) {
        int block = item / count, row = item % count;
        double* part = parts + uint64_t(item) * count;
        for (int k = 0; k < count; ++k) {
            part[k] = k == row ? 1.0 : 0.0;
        }
        Products g = {gram + block * cells, factors, count};
        const uint32_t* order = orders + uint64_t(item) * count;
        if (method == kPcGrad) {
            project(part, g, row, order);
        } else if (method == kGradVac) {
            double* own = targets + (uint64_t(block) * run_tasks + tasks[row]) * run_tasks;
            vaccinate(part, products + uint64_t(item) * count, own, g, row, order, tasks, beta, eps);
        }
    }
    __syncthreads();

    for (int item = threadIdx.x; item < blocks * count; item += kThreads) {
        const double* part = parts + uint64_t(item / count) * cells + item % count;
        double weight = 0.0;
        for (int row = 0; row < count; ++row) {
            weight += part[row * count];
        }
        weights[item] = weight * rescale;
    }
    __syncthreads();

    // |sum_t w_t g_t|^2 = w' G w over all blocks, and the heads.
    double square = 0.0, conflicts = 0.0;
    for (int item = threadIdx.x; item < blocks * count; item += kThreads) {
        int block = item / count, i = item % count;
        Products g = {gram + block * cells, factors, count};
        for (int j = 0; j < count; ++j) {
            square += weights[item] * weights[block * count + j] * g.at(i, j);
            conflicts += i < j && g.gram[i * count + j] < 0.0 ? 1.0 : 0.0;
        }
    }
    square = fmax(block_sum(square, warps), 0.0);
    conflicts = block_sum(conflicts, warps);
    for (int t = 0; t < count; ++t) {
        double factor = factors[t] * (heads_weighted ? weights[t] : 1.0);
        square += factor * factor * head_squares[t];
    }
    double clip = clip_norm > 0.0 && !clip_tasks ? clip_factor(clip_norm, square) : 1.0;
    for (int item = threadIdx.x; item < blocks * count; item += kThreads) {
        shared_factors[item] = float(weights[item] * (factors[item % count] * clip));
    }
    for (int t = threadIdx.x; t < count; t += kThreads) {
        head_factors[t] = float(factors[t] * (heads_weighted ? weights[t] : 1.0) * clip);
    }
    if (threadIdx.x == 0) {
        *halted = isfinite(square) ? 0 : 1;
        summary[0] = sqrt(square);
        summary[1] = clip;
        summary[2] = isfinite(square) ? 1.0 : 0.0;
        summary[3] = conflicts;
    }
}
