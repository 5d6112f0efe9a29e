// Every tensor-core, asynchronous-copy and inline-PTX primitive, each with a plain C++ body for the emulated device.
//
// The emulated bodies use the fragment layouts of the PTX manual (mma.m16n8k16 for .bf16, ldmatrix .b16), lane by lane, so a
// kernel that mixes them up computes wrong numbers there too. Lane l is in group g = l / 4 and is thread t = l % 4 of it.
#pragma once

#include "common.cuh"

// Two numbers rounded to nearest even, the first in the lower half.
__device__ __forceinline__ uint32_t bf16_pair(float first, float second) {
#ifdef TASKLOOM_EMULATED
    return uint32_t(from_float<bf16>(first)) | uint32_t(from_float<bf16>(second)) << 16;
#else
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#endif
}

// d (16 x 8, f32) += a (16 x 16) b (16 x 8), bf16.
//   a: a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//   b: b[0] = (2t..2t+1, g), b[1] = (2t + 8.., g)
//   d: d[0..1] = (g, 2t..2t+1), d[2..3] = (g + 8, 2t..2t+1)
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef TASKLOOM_EMULATED
    struct Fragments {
        uint32_t a[4];
        uint32_t b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    emulated::Warp<Fragments> all(mine);
    int group = lane_id() / 4, thread = lane_id() % 4;
    auto value = [](uint32_t pair, int k) { return to_float(bf16(pair >> (16 * (k % 2)))); };
    for (int half = 0; half < 2; ++half) {
        for (int side = 0; side < 2; ++side) {
            int column = 2 * thread + side;
            float sum = d[2 * half + side];
            for (int k = 0; k < 16; ++k) {
                Fragments left = all[4 * group + k % 8 / 2], right = all[4 * column + k % 8 / 2];
                sum += value(left.a[half + 2 * (k / 8)], k) * value(right.b[k / 8], k);
            }
            d[2 * half + side] = sum;
        }
    }
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#ifdef TASKLOOM_EMULATED
template <bool transposed>
inline void emulated_ldmatrix(uint32_t (&r)[4], const bf16* row) {
    emulated::Warp<const bf16*> rows(row);
    int group = lane_id() / 4, thread = lane_id() % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
        int own = 8 * matrix;
        uint32_t low = transposed ? rows[own + 2 * thread][group] : rows[own + group][2 * thread];
        uint32_t high = transposed ? rows[own + 2 * thread + 1][group] : rows[own + group][2 * thread + 1];
        r[matrix] = low | high << 16;
    }
}
#endif

// Four 8 x 8 matrices of bf16 from shared memory. Lane l gives the address (16-byte aligned) of row l % 8 of matrix l / 8;
// r[i] is that matrix's (g, 2t..2t+1).
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const bf16* row) {
#ifdef TASKLOOM_EMULATED
    emulated_ldmatrix<false>(r, row);
#else
    uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}

// As ldmatrix, each matrix transposed: r[i] is (2t..2t+1, g) of what is stored.
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const bf16* row) {
#ifdef TASKLOOM_EMULATED
    emulated_ldmatrix<true>(r, row);
#else
    uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}

// Starts copying 16 bytes to shared memory, of which the first `bytes` (0 to 16) come from global memory and the rest are
// zero. Both addresses are 16-byte aligned; it is there after the wait for its group and a barrier.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int bytes) {
#ifdef TASKLOOM_EMULATED
    taskloom_copy_async(shared, global, 16, bytes);
#else
    uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// Closes a group of the thread's copies.
__device__ __forceinline__ void copy_async_commit() {
#ifdef TASKLOOM_EMULATED
    taskloom_copy_async_commit();
#else
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most `pending` of the thread's latest groups are under way.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
#ifdef TASKLOOM_EMULATED
    taskloom_copy_async_wait(pending);
#else
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
#endif
}

// 2^x within two units in the last place; 0 where that is below the smallest normal number.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef TASKLOOM_EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
