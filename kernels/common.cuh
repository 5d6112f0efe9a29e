// What every kernel shares: types, conversions, reductions in a fixed order, counter-based random numbers.
//
// The files hold device code only and include nothing of the CUDA runtime library, so they compile without a GPU; with
// TASKLOOM_EMULATED they are plain C++ on the emulated device.
#pragma once

#ifdef TASKLOOM_EMULATED
#include "emulated.h"
#else
#include <stdint.h>
// Dynamic shared memory of the launch, 16-byte aligned, as an array of `type`.
#define SHARED_DYNAMIC(type, name)                                       \
    extern __shared__ __align__(16) unsigned char taskloom_shared[];     \
    type* name = reinterpret_cast<type*>(taskloom_shared)
#endif

// bf16 as stored: the upper half of an f32.
typedef uint16_t bf16;

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// Elements of one row of a bf16 matrix as it is stored: every row begins at a multiple of 16 bytes. What pads it is zero where a
// kernel made the matrix, and nothing reads it in one that the host made.
__host__ __device__ constexpr int pitch_of(int columns) { return (columns + 7) / 8 * 8; }

// T values at once, aligned to their size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

// One wide access. A host compiler may split it, so the emulated device is told of its alignment.
template <typename P, typename T>
__device__ __forceinline__ P load_pack(const T* from) {
#ifdef TASKLOOM_EMULATED
    taskloom_aligned(from, sizeof(P));
#endif
    return *reinterpret_cast<const P*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& values) {
#ifdef TASKLOOM_EMULATED
    taskloom_aligned(to, sizeof(values));
#endif
    *reinterpret_cast<Pack<T, N>*>(to) = values;
}

template <typename To, typename From>
__device__ __forceinline__ To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return bits_of<float>(uint32_t(x) << 16); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
// Round to nearest even; NaN stays NaN.
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    uint32_t bits = bits_of<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return bf16((bits >> 16) | 0x40);
    }
    return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

__device__ __forceinline__ int lane_id() { return int(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / kWarp; }

// Sum over the warp, the same on every lane: butterfly, so the order is fixed.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(kAll, value, step);
    }
    return value;
}

// The larger of two numbers; one that is NaN is passed over.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// The largest value of the warp, the same on every lane.
template <typename T>
__device__ __forceinline__ T warp_largest(T value) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value = larger(value, __shfl_xor_sync(kAll, value, step));
    }
    return value;
}

// Sums each of N values over the warp, where N is a power of two up to 32 or a multiple of 32, in one tree: lane l is left with value
// l / (32 / N), or with values l * N/32 .. (l + 1) * N/32, in values[0..]. As long as there are several, each step sends half of what is
// left, so it costs about N shuffles instead of 5 N.
template <int kLeft = 0, int step = kWarp / 2, typename T, int N>
__device__ __forceinline__ void scatter_sums(T (&values)[N]) {
    constexpr int kCount = kLeft ? kLeft : N, half = kCount / 2;
    if constexpr (kCount == 1) {
        values[0] += __shfl_xor_sync(kAll, values[0], step);
    } else {
        bool upper = (lane_id() & step) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            T sent = upper ? values[i] : values[i + half];
            T kept = upper ? values[i + half] : values[i];
            values[i] = kept + __shfl_xor_sync(kAll, sent, step);
        }
    }
    if constexpr (step > 1) {
        scatter_sums<kCount == 1 ? 1 : half, step / 2>(values);
    }
}

// Sum over the block (a multiple of 32 threads), the same on every thread. `warps` is room for a value a warp.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* warps) {
    value = warp_sum(value);
    __syncthreads();
    if (lane_id() == 0) {
        warps[warp_id()] = value;
    }
    __syncthreads();
    T total = 0;
    for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) {
        total += warps[warp];
    }
    return total;
}

// As block_sum, the largest value.
template <typename T>
__device__ __forceinline__ T block_largest(T value, T* warps) {
    value = warp_largest(value);
    __syncthreads();
    if (lane_id() == 0) {
        warps[warp_id()] = value;
    }
    __syncthreads();
    for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) {
        value = larger(value, warps[warp]);
    }
    return value;
}

// Philox4x32-10 (Salmon et al., SC 2011), as ops/philox.rs.
struct Words {
    uint32_t at[4];
};

__device__ __forceinline__ Words philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint64_t p0 = uint64_t(0xD2511F53u) * c0;
        uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
        uint32_t n0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = uint32_t(p1);
        c2 = n2;
        c3 = uint32_t(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

// Streams of ops/philox.rs.
constexpr uint32_t kStreamInit = 1;
constexpr uint32_t kStreamHiddenDropout = 4;
constexpr uint32_t kStreamTokenDropout = 7;
constexpr uint32_t kStreamAttentionDropout = 8;

// Words 4 * block to 4 * block + 3 of `Keyed::new(seed, stream, round, task, example)`.
__device__ __forceinline__ Words keyed_block(uint64_t seed, uint32_t stream, uint32_t round, uint32_t task, uint32_t example,
                                             uint32_t block) {
    return philox4x32(block, example, task, round, uint32_t(seed), uint32_t(seed >> 32) ^ (stream * 0x85EBCA6Bu));
}

// SplitMix64's step and finalizer, as surgery/methods/random.rs.
__device__ __forceinline__ uint64_t mix(uint64_t value) {
    uint64_t z = value + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
