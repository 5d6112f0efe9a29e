// What compute capability 9.0a has beyond mma.cuh: barriers in shared memory, the copy engine for boxes, products of a warpgroup.
//
// Nothing here has a plain C++ body: the emulated device computes the same operations with the kernels of the folder above.
#pragma once

#include "../common.cuh"

// 128 bytes that the driver encoded: how the copy engine sees a matrix.
struct alignas(64) TensorMap {
    uint8_t bytes[128];
};

namespace hopper {

// Places in shared memory are 32-bit addresses here: they take half the registers of pointers.
typedef uint32_t Shared;

__device__ __forceinline__ Shared shared_address(const void* at) { return Shared(__cvta_generic_to_shared(at)); }

// Barriers count arrivals and bytes that copies bring; a phase is over when both are complete.
__device__ __forceinline__ void barrier_init(Shared barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Initialized barriers are seen by the copy engine and by the other blocks of the cluster.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// One arrival, and the bytes that this phase waits for.
__device__ __forceinline__ void barrier_expect(Shared barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// One arrival. What the thread did before needs no order of its own: products that are waited for have read.
__device__ __forceinline__ void barrier_arrive(Shared barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// As barrier_arrive, at the same barrier of block `rank` of the cluster. No wider scope: a fence of the whole card at every step
// would cost more than the step.
__device__ __forceinline__ void barrier_arrive_at(Shared barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}\n" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// Waits for the end of a phase of this parity.
__device__ __forceinline__ void barrier_wait(Shared barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Starts copying the box at (row, column) into shared memory; its bytes count at the barrier.
__device__ __forceinline__ void load_box(Shared to, const TensorMap* map, int row, int column, Shared barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            to),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// As load_box, to the same place of every block of the cluster in `blocks`, and counted at the barrier of each.
__device__ __forceinline__ void load_box_for_all(Shared to, const TensorMap* map, int row, int column, Shared barrier,
                                                 uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], "
        "[%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
        : "memory");
}

// What this thread wrote to shared memory is there for the copy engine and for products.
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of `threads` threads of the block, by number.
__device__ __forceinline__ void named_barrier(int number, int threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

template <int registers>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// 16, 8 or 4 bytes of shared memory.
__device__ __forceinline__ uint4 load_16(Shared at) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at) : "memory");
    return x;
}

// Starts copying 16 bytes from global memory, of which those from `bytes` on are zero instead; the thread waits for its group.
__device__ __forceinline__ void bring_16(Shared to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void store_16(Shared at, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

__device__ __forceinline__ void load_8(float& first, float& second, Shared at) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(first), "=f"(second) : "r"(at) : "memory");
}

__device__ __forceinline__ void store_4(Shared at, float x) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory"); }

__device__ __forceinline__ void store_8(Shared at, float first, float second) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(first), "f"(second) : "memory");
}

// Four 8 x 8 matrices of bf16 to shared memory, laid out as ldmatrix takes them.
__device__ __forceinline__ void store_matrices(Shared row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}

// 2^x to about two units in the last place.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x to about one unit in the last place, for x that is no denormal number.
__device__ __forceinline__ float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A pair of bf16, the first in the lower half.
__device__ __forceinline__ uint32_t pair_of(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// An operand in shared memory under the 128-byte swizzle (the address of a multiple of 1024 bytes, plus the offset within):
// `leading` bytes between repetitions of the pattern along rows or columns, 1024 between groups of eight.
__device__ __forceinline__ uint64_t operand(Shared at, uint32_t leading) {
    return uint64_t((at & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
           uint64_t(1) << 62;
}

// 16 inner positions of eight columns that all hold the same, in 256 bytes: 128 for each eight positions.
__device__ __forceinline__ uint64_t constant_operand(Shared at) {
    return uint64_t((at & 0x3ffff) >> 4) | uint64_t(128 >> 4) << 16 | uint64_t(128 >> 4) << 32;
}

__device__ __forceinline__ void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int pending>
__device__ __forceinline__ void product_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// sums (64 x N, f32) += a (64 x 16) b (16 x N), bf16 in shared memory. `a_by_rows`: the inner dimension of a runs down the
// rows of what is stored, and likewise b. Warp w of the warpgroup has rows 16 w ..; thread t of group g (lane 4 g + t) has of columns
// 8 j .. + 8 the sums[j] = (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <int N, bool a_by_rows, bool b_by_rows>
struct Product;

template <bool a_by_rows, bool b_by_rows>
struct Product<8, a_by_rows, b_by_rows> {
    __device__ __forceinline__ static void add(float (&d)[1][4], uint64_t a, uint64_t b) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, %6, %7;"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3])
            : "l"(a), "l"(b), "n"(int(a_by_rows)), "n"(int(b_by_rows)));
    }
};

// As many sums as a warpgroup has of 64 columns, as operands of an instruction: in order, each with a constraint.
#define TASKLOOM_EIGHT(constraint, d, j)                                                                                     \
    constraint(d[j][0]), constraint(d[j][1]), constraint(d[j][2]), constraint(d[j][3]), constraint(d[j + 1][0]),              \
        constraint(d[j + 1][1]), constraint(d[j + 1][2]), constraint(d[j + 1][3])
#define TASKLOOM_SUMS_64(constraint, d)                                                                                      \
    TASKLOOM_EIGHT(constraint, d, 0), TASKLOOM_EIGHT(constraint, d, 2), TASKLOOM_EIGHT(constraint, d, 4), TASKLOOM_EIGHT(constraint, d, 6)
#define TASKLOOM_PRODUCT_64                                                                                                  \
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                 \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                                         \
    "}, "

template <bool a_by_rows, bool b_by_rows>
struct Product<64, a_by_rows, b_by_rows> {
    __device__ __forceinline__ static void add(float (&d)[8][4], uint64_t a, uint64_t b) {
        asm volatile(TASKLOOM_PRODUCT_64 "%32, %33, 1, 1, 1, %34, %35;"
                     : TASKLOOM_SUMS_64("+f", d)
                     : "l"(a), "l"(b), "n"(int(a_by_rows)), "n"(int(b_by_rows)));
    }

    // d = a b
    __device__ __forceinline__ static void set(float (&d)[8][4], uint64_t a, uint64_t b) {
        asm volatile(TASKLOOM_PRODUCT_64 "%32, %33, 0, 1, 1, %34, %35;"
                     : TASKLOOM_SUMS_64("=f", d)
                     : "l"(a), "l"(b), "n"(int(a_by_rows)), "n"(int(b_by_rows)));
    }

    // With the first operand in registers: of each warp's 16 rows what mma.sync takes. They are not to change before the wait.
    __device__ __forceinline__ static void add(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
        static_assert(!a_by_rows, "registers have rows only");
        asm volatile(TASKLOOM_PRODUCT_64 "{%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                     : TASKLOOM_SUMS_64("+f", d)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(b_by_rows)));
    }

    __device__ __forceinline__ static void set(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
        static_assert(!a_by_rows, "registers have rows only");
        asm volatile(TASKLOOM_PRODUCT_64 "{%32, %33, %34, %35}, %36, 0, 1, 1, %37;"
                     : TASKLOOM_SUMS_64("=f", d)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(b_by_rows)));
    }
};

// After the wait for products: the compiler may not read their sums any earlier.
__device__ __forceinline__ void arrived(float (&sums)[8][4]) {
#pragma unroll
    for (int at = 0; at < 32; ++at) {
        asm volatile("" : "+f"(sums[at / 4][at % 4])::"memory");
    }
}

template <bool a_by_rows, bool b_by_rows>
struct Product<128, a_by_rows, b_by_rows> {
    __device__ __forceinline__ static void add(float (&d)[16][4], uint64_t a, uint64_t b) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, "
            "%8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, "
            "%24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, "
            "%40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, "
            "%56, %57, %58, %59, %60, %61, %62, %63"
            "}, %64, %65, 1, 1, 1, %66, %67;"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
              "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
              "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
              "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
              "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
              "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
              "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
              "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
              "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
              "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
              "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),
              "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
              "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),
              "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
              "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
              "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
            : "l"(a), "l"(b), "n"(int(a_by_rows)), "n"(int(b_by_rows)));
    }
};

template <bool a_by_rows, bool b_by_rows>
struct Product<192, a_by_rows, b_by_rows> {
    __device__ __forceinline__ static void add(float (&d)[24][4], uint64_t a, uint64_t b) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, "
            "%8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, "
            "%24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, "
            "%40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, "
            "%56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, "
            "%72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, "
            "%88, %89, %90, %91, %92, %93, %94, %95"
            "}, %96, %97, 1, 1, 1, %98, %99;"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
              "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
              "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
              "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
              "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
              "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
              "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
              "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
              "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
              "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
              "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),
              "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
              "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),
              "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
              "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
              "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]),
              "+f"(d[16][0]), "+f"(d[16][1]), "+f"(d[16][2]), "+f"(d[16][3]),
              "+f"(d[17][0]), "+f"(d[17][1]), "+f"(d[17][2]), "+f"(d[17][3]),
              "+f"(d[18][0]), "+f"(d[18][1]), "+f"(d[18][2]), "+f"(d[18][3]),
              "+f"(d[19][0]), "+f"(d[19][1]), "+f"(d[19][2]), "+f"(d[19][3]),
              "+f"(d[20][0]), "+f"(d[20][1]), "+f"(d[20][2]), "+f"(d[20][3]),
              "+f"(d[21][0]), "+f"(d[21][1]), "+f"(d[21][2]), "+f"(d[21][3]),
              "+f"(d[22][0]), "+f"(d[22][1]), "+f"(d[22][2]), "+f"(d[22][3]),
              "+f"(d[23][0]), "+f"(d[23][1]), "+f"(d[23][2]), "+f"(d[23][3])
            : "l"(a), "l"(b), "n"(int(a_by_rows)), "n"(int(b_by_rows)));
    }
};

}  // namespace hopper
