// A stretch of J: f32, or bf16 for half the bytes. Sums are made in f32 and rounded when they are stored.
#pragma once

#include "mma.cuh"

// read(rows) with rows of J as they are kept.
template <typename Read>
__device__ __forceinline__ void with_rows(const void* jacobian, int narrow, Read read) {
    if (narrow) {
        read(static_cast<const bf16*>(jacobian));
    } else {
        read(static_cast<const float*>(jacobian));
    }
}

// The values of one segment's row from `offset` on, and whether gradients are added to what is there.
struct JacobianRow {
    float* wide;
    bf16* narrow;
    bool adds;

    __device__ __forceinline__ JacobianRow(void* jacobian, bool is_narrow, uint64_t offset, bool adds)
        : wide(is_narrow ? nullptr : static_cast<float*>(jacobian) + offset),
          narrow(is_narrow ? static_cast<bf16*>(jacobian) + offset : nullptr),
          adds(adds) {}

    // The first `count` of N neighbouring values (a multiple of 4, or one) go to `at` and after.
    template <int N>
    __device__ __forceinline__ void put(uint64_t at, const float (&values)[N], int count) const {
        if (narrow) {
            put_to(narrow + at, values, count);
        } else {
            put_to(wide + at, values, count);
        }
    }

    __device__ __forceinline__ void put(uint64_t at, float value) const {
        float one[1] = {value};
        put<1>(at, one, 1);
    }

   private:
    template <typename T, int N>
    __device__ __forceinline__ void put_to(T* to, const float (&values)[N], int count) const {
        // As many at once as 16 bytes hold.
        constexpr int kAtOnce = N * int(sizeof(T)) < 16 ? N : 16 / int(sizeof(T));
        typedef Pack<T, kAtOnce> Vector;
        if (count >= N && uint64_t(to) % sizeof(Vector) == 0) {
#pragma unroll
            for (int first = 0; first < N; first += kAtOnce) {
                Vector before = {}, after;
                if (adds) {
                    before = load_pack<Vector>(to + first);
                }
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) {
                    after.at[i] = from_float<T>(adds ? to_float(before.at[i]) + values[first + i] : values[first + i]);
                }
                store_pack(to + first, after);
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (i < count) {
                to[i] = from_float<T>(adds ? to_float(to[i]) + values[i] : values[i]);
            }
        }
    }
};
