// Initial values of embedding rows: pure functions of a row's number, so that rows nobody has touched need no memory.
#pragma once

#include "common.cuh"

// Stands for the slot of a row that has none yet.
constexpr uint32_t kUntouchedRow = 0xffffffffu;

// cos(2 pi turns). On a GPU the general cosine would reduce its argument through local memory.
__device__ __forceinline__ double cosine_of_turns(double turns) {
#ifdef TASKLOOM_EMULATED
    return cos(6.283185307179586 * turns);
#else
    return cospi(2.0 * turns);
#endif
}

// Value `column` of an untouched row: `Keyed::normal` of ops/philox.rs times the deviation.
__device__ __forceinline__ float initial_value(uint64_t seed, double deviation, uint32_t row, int column) {
    Words words = keyed_block(seed, kStreamInit, 0, 0xffffffffu, row, uint32_t(column / 2));
    uint32_t first = column % 2 ? words.at[2] : words.at[0], second = column % 2 ? words.at[3] : words.at[1];
    double radius = (double(first) + 1.0) / 4294967296.0;
    double angle = double(second) / 4294967296.0;
    return float(sqrt(-2.0 * log(radius)) * cosine_of_turns(angle) * deviation);
}
