// What nvcc knows without an include, for kernels compiled as C++: one fiber per thread, run by src/machine/emulated.
//
// Loads and stores reach the checker because the compiler instruments them (-fsanitize=thread without its library): a kernel
// needs no accessors. __shared__ variables are statics of the host thread, which runs one block at a time.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// The runtime, in src/machine/emulated/callbacks.rs.
extern "C" {
uint3 taskloom_thread_index() __attribute__((const));
uint3 taskloom_block_index() __attribute__((const));
uint3 taskloom_block_size() __attribute__((const));
uint3 taskloom_grid_size() __attribute__((const));
void* taskloom_dynamic_shared() __attribute__((const));
// Block barrier; returns how many threads came with a nonzero vote.
int taskloom_block_barrier(int vote, int line);
// Warp barrier that orders memory.
void taskloom_warp_barrier(unsigned mask, int line);
// Each lane of `mask` gives `bytes` (at most 128) of its own; returns 32 slots of 128 bytes, those of other lanes undefined.
// They last until the lane's next warp operation. Orders no memory, as a shuffle orders none.
const unsigned char* taskloom_exchange(const void* mine, int bytes, unsigned mask, int line);
void taskloom_undefined_lane(int lane, int line);
// The check of an atomic access, and of the fence that publishes a block's writes to other blocks.
void taskloom_atomic(void* address, int bytes);
void taskloom_fence();
// A fault unless the address is a multiple of `bytes`.
void taskloom_aligned(const void* address, int bytes);
void taskloom_copy_async(void* shared, const void* global, int bytes, int source_bytes);
void taskloom_copy_async_commit();
void taskloom_copy_async_wait(int groups_left);
}

#define threadIdx taskloom_thread_index()
#define blockIdx taskloom_block_index()
#define blockDim taskloom_block_size()
#define gridDim taskloom_grid_size()
constexpr int warpSize = 32;

// Dynamic shared memory of the launch, 16-byte aligned, as an array of `type`.
#define SHARED_DYNAMIC(type, name) type* name = static_cast<type*>(taskloom_dynamic_shared())

inline void __syncthreads(int line = __builtin_LINE()) { taskloom_block_barrier(0, line); }
inline int __syncthreads_count(int vote, int line = __builtin_LINE()) { return taskloom_block_barrier(vote != 0, line); }
inline int __syncthreads_or(int vote, int line = __builtin_LINE()) { return taskloom_block_barrier(vote != 0, line) != 0; }
inline int __syncthreads_and(int vote, int line = __builtin_LINE()) { return taskloom_block_barrier(vote == 0, line) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) { taskloom_warp_barrier(mask, line); }
inline void __threadfence() { taskloom_fence(); }
inline void __threadfence_block() {}

// Every lane's `mine`, for primitives of a whole warp: `emulated::Warp<T> all(mine); all[lane]`.
namespace emulated {
constexpr int kSlot = 128;

template <typename T>
struct Warp {
    const unsigned char* slots;

    __attribute__((no_sanitize("thread"))) explicit Warp(const T& mine, unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
        static_assert(sizeof(T) <= kSlot, "a lane gives at most a slot");
        slots = taskloom_exchange(&mine, sizeof(T), mask, line);
    }

    __attribute__((no_sanitize("thread"))) T operator[](int lane) const {
        T value;
        __builtin_memcpy(&value, slots + lane * kSlot, sizeof(T));
        return value;
    }
};

inline int lane() {
    uint3 thread = threadIdx, size = blockDim;
    return int((thread.z * size.y + thread.y) * size.x + thread.x) % 32;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, int line) {
    Warp<T> all(value, mask, line);
    if (!(mask >> source & 1)) {
        taskloom_undefined_lane(source, line);
    }
    return all[source];
}
}  // namespace emulated

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    int lane = emulated::lane();
    return emulated::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, int line = __builtin_LINE()) {
    int lane = emulated::lane(), source = lane ^ flip;
    return emulated::shuffle(mask, value, source / width > lane / width ? lane : source, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    int lane = emulated::lane(), source = lane + int(by);
    return emulated::shuffle(mask, value, lane % width + int(by) >= width ? lane : source, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    int lane = emulated::lane(), source = lane - int(by);
    return emulated::shuffle(mask, value, lane % width < int(by) ? lane : source, line);
}
inline unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    emulated::Warp<int> all(vote, mask, line);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
        votes |= (mask >> lane & 1) && all[lane] ? 1u << lane : 0;
    }
    return votes;
}
inline int __any_sync(unsigned mask, int vote, int line = __builtin_LINE()) { return __ballot_sync(mask, vote, line) != 0; }
inline int __all_sync(unsigned mask, int vote, int line = __builtin_LINE()) { return __ballot_sync(mask, vote, line) == mask; }

// Fibers are never preempted, so an atomic operation is a plain one that the checker knows about.
#define TASKLOOM_ATOMIC(name, expression)                                    \
    template <typename T>                                                    \
    __attribute__((no_sanitize("thread"), noinline)) T name(T* at, T value) { \
        static_assert(T(0.5) == T(0), "float atomics have no fixed order");  \
        taskloom_atomic(at, sizeof(T));                                      \
        T old = *at;                                                         \
        *at = expression;                                                    \
        return old;                                                          \
    }
TASKLOOM_ATOMIC(atomicAdd, old + value)
TASKLOOM_ATOMIC(atomicSub, old - value)
TASKLOOM_ATOMIC(atomicMin, old < value ? old : value)
TASKLOOM_ATOMIC(atomicMax, old < value ? value : old)
TASKLOOM_ATOMIC(atomicAnd, old & value)
TASKLOOM_ATOMIC(atomicOr, old | value)
TASKLOOM_ATOMIC(atomicXor, old ^ value)
TASKLOOM_ATOMIC(atomicExch, value)
TASKLOOM_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
template <typename T>
__attribute__((no_sanitize("thread"), noinline)) T atomicCAS(T* at, T expected, T value) {
    taskloom_atomic(at, sizeof(T));
    T old = *at;
    *at = old == expected ? value : old;
    return old;
}

template <typename T> T __ldg(const T* at) { return *at; }
template <typename T> T __ldcs(const T* at) { return *at; }
template <typename T> T __ldcg(const T* at) { return *at; }
template <typename T> void __stcs(T* at, T value) { *at = value; }
template <typename T> void __stcg(T* at, T value) { *at = value; }

template <typename T> T min(T a, T b) { return b < a ? b : a; }
template <typename T> T max(T a, T b) { return a < b ? b : a; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
template <typename To, typename From>
To taskloom_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
inline unsigned __float_as_uint(float x) { return taskloom_bits<unsigned>(x); }
inline int __float_as_int(float x) { return taskloom_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return taskloom_bits<float>(x); }
inline float __int_as_float(int x) { return taskloom_bits<float>(x); }
