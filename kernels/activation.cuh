// Activations as functions of one number, with the polynomials of ops/activation.rs so that every device agrees.
#pragma once

#include "common.cuh"

// Numbers of ops::activation::Activation.
enum Activation { kNone = 0, kRelu = 1, kGelu = 2, kTanh = 3 };

// e^x: 2^n by exponent bits times a degree-6 polynomial of the rest.
__device__ __forceinline__ float exp_poly(float x) {
    x = fminf(fmaxf(x, -87.0f), 88.0f);
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float p = 1.0f / 720.0f;
    p = fmaf(p, r, 1.0f / 120.0f);
    p = fmaf(p, r, 1.0f / 24.0f);
    p = fmaf(p, r, 1.0f / 6.0f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * bits_of<float>(uint32_t(int(n) + 127) << 23);
}

// Phi(x) by erfc's exponential-of-polynomial form (Press et al., Numerical Recipes, section 6.2).
__device__ __forceinline__ float normal_cdf(float x) {
    float z = fabsf(x) * 0.70710678f;
    float t = 1.0f / fmaf(0.5f, z, 1.0f);
    float p = 0.17087277f;
    p = fmaf(p, t, -0.82215223f);
    p = fmaf(p, t, 1.4885159f);
    p = fmaf(p, t, -1.135204f);
    p = fmaf(p, t, 0.27886807f);
    p = fmaf(p, t, -0.18628806f);
    p = fmaf(p, t, 0.09678418f);
    p = fmaf(p, t, 0.37409196f);
    p = fmaf(p, t, 1.0000237f);
    p = fmaf(p, t, -1.2655122f);
    float half_erfc = 0.5f * t * exp_poly(fmaf(-z, z, p));
    return x < 0.0f ? half_erfc : 1.0f - half_erfc;
}

__device__ __forceinline__ float normal_pdf(float x) { return 0.3989423f * exp_poly(-0.5f * x * x); }

__device__ __forceinline__ float tanh_poly(float x) {
    // Near zero 1 - 2/(e^2x + 1) cancels; the odd series is exact to rounding there.
    float series = x * fmaf(x * x, fmaf(x * x, 2.0f / 15.0f, -1.0f / 3.0f), 1.0f);
    float ratio = 1.0f - 2.0f / (exp_poly(2.0f * x) + 1.0f);
    return fabsf(x) < 0.05f ? series : ratio;
}

__device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
        case kRelu: return fmaxf(x, 0.0f);
        case kGelu: return x * normal_cdf(x);
        case kTanh: return tanh_poly(x);
        default: return x;
    }
}

// f'(x)
__device__ __forceinline__ float activation_slope(float x, int activation) {
    switch (activation) {
        case kRelu: return x > 0.0f ? 1.0f : 0.0f;
        case kGelu: return fmaf(x, normal_pdf(x), normal_cdf(x));
        case kTanh: {
            float t = tanh_poly(x);
            return 1.0f - t * t;
        }
        default: return 1.0f;
    }
}
