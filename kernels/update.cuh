// One optimizer step of one number, and what makes a column of J one number: as ops/adamw.rs and surgery/methods/columns.rs.
#pragma once

#include "common.cuh"

// What a round's step works with, uploaded each round (a captured launch keeps its arguments).
struct Rates {
    // 0: AdamW, 1: SGD with momentum
    int rule;
    float beta1;
    float beta2;
    float eps;
    float correction1;
    float correction2;
    float momentum;
};

// A parameter group's own numbers.
struct GroupRates {
    float lr;
    float weight_decay;
};

__device__ __forceinline__ void step_one(const Rates& rates, const GroupRates& group, float& p, float& m, float& v, float d) {
    if (rates.rule == 0) {
        float keep = 1.0f - group.lr * group.weight_decay;
        float rate = group.lr / rates.correction1;
        float inverse_root = 1.0f / sqrtf(rates.correction2);
        m = fmaf(rates.beta1, m, (1.0f - rates.beta1) * d);
        v = fmaf(rates.beta2, v, (1.0f - rates.beta2) * d * d);
        p = fmaf(keep, p, -rate * m / fmaf(sqrtf(v), inverse_root, rates.eps));
    } else {
        m = fmaf(rates.momentum, m, fmaf(group.weight_decay, p, d));
        p = fmaf(-group.lr, m, p);
    }
}

// How T gradients of a parameter become one.
enum Columns { kGradDrop = 0, kTrimmedMean = 1 };

// The rule's value for a column whose scaled gradients are `column[t * pitch]`. `parameter` is the leak or the trim, `bits`
// are random for the column. Trimming counts each value's rank, so it needs no sorted copy.
__device__ __forceinline__ double column_value(int rule, double parameter, const double* column, int pitch, int tasks,
                                               uint64_t bits) {
    if (rule == kGradDrop) {
        double positive = 0.0, negative = 0.0;
        for (int t = 0; t < tasks; ++t) {
            double g = column[t * pitch];
            positive += g > 0.0 ? g : 0.0;
            negative += g < 0.0 ? g : 0.0;
        }
        if (positive == negative) {
            return 0.0;
        }
        // The purity p / (p - n) against the draw, compared without the division.
        double draw = double(bits >> 11) * (1.0 / 9007199254740992.0);
        double threshold = draw * (positive - negative);
        return (positive > threshold ? 1.0 : parameter) * positive + (positive < threshold ? 1.0 : parameter) * negative;
    }
    int trim = parameter < double((tasks - 1) / 2) ? int(parameter) : (tasks - 1) / 2;
    double sum = 0.0;
    for (int t = 0; t < tasks; ++t) {
        double g = column[t * pitch];
        int rank = 0;
        for (int s = 0; s < tasks; ++s) {
            double other = column[s * pitch];
            rank += other < g || (other == g && s < t) ? 1 : 0;
        }
        sum += rank >= trim && rank < tasks - trim ? g : 0.0;
    }
    return sum / double(tasks - 2 * trim);
}

// As surgery/methods/random.rs: bits(seed, round, index).
__device__ __forceinline__ uint64_t column_bits(uint64_t seed, uint64_t round, uint64_t index) {
    return mix(mix(mix(seed) ^ round) ^ index);
}
