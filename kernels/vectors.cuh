// Rows of bf16 in vectors of eight neighbouring values: 16 bytes, the widest access there is. Kernels that use them take rows of
// a multiple of eight columns.
#pragma once

#include "mma.cuh"

constexpr int kEight = 8;

// Eight values of bf16 as they are stored.
typedef Pack<uint32_t, 4> Raw;

__device__ __forceinline__ Raw load_raw(const bf16* from) { return load_pack<Raw>(from); }
__device__ __forceinline__ void store_raw(bf16* to, const Raw& values) { store_pack(reinterpret_cast<uint32_t*>(to), values); }

struct Floats {
    float at[kEight];
};

__device__ __forceinline__ Floats widen(const Raw& raw) {
    Floats wide;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        wide.at[2 * i] = bits_of<float>(raw.at[i] << 16);
        wide.at[2 * i + 1] = bits_of<float>(raw.at[i] & 0xffff0000u);
    }
    return wide;
}

__device__ __forceinline__ Raw narrowed(const Floats& wide) {
    Raw raw;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        raw.at[i] = bf16_pair(wide.at[2 * i], wide.at[2 * i + 1]);
    }
    return raw;
}

// Eight values of f32, by two wide loads where they begin at a multiple of 16 bytes.
__device__ __forceinline__ Floats load_floats(const float* from) {
    Floats values;
    if (uint64_t(from) % 16 == 0) {
        Pack<float, 4> low = load_pack<Pack<float, 4>>(from), high = load_pack<Pack<float, 4>>(from + 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            values.at[i] = low.at[i];
            values.at[i + 4] = high.at[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            values.at[i] = from[i];
        }
    }
    return values;
}

// To a multiple of 16 bytes.
__device__ __forceinline__ void store_floats(float* to, const Floats& values) {
    store_pack(to, Pack<float, 4>{{values.at[0], values.at[1], values.at[2], values.at[3]}});
    store_pack(to + 4, Pack<float, 4>{{values.at[4], values.at[5], values.at[6], values.at[7]}});
}

// For each of this lane's vectors of a row of `width`: use(column, what load(column) gave). `kAtOnce` are loaded before the first
// is used.
template <int kAtOnce, typename Load, typename Use>
__device__ __forceinline__ void each_vector(int width, Load load, Use use) {
    int vectors = width / kEight;
    for (int start = lane_id(); start < vectors; start += kAtOnce * kWarp) {
        decltype(load(0)) loaded[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            if (start + i * kWarp < vectors) {
                loaded[i] = load((start + i * kWarp) * kEight);
            }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            if (start + i * kWarp < vectors) {
                use((start + i * kWarp) * kEight, loaded[i]);
            }
        }
    }
}
