// Kernels that hold the emulated device itself to account: sound ones, and ones with a planted fault.
#ifdef TASKLOOM_EMULATED
#include "emulated.h"

// out[b] = sum of x over block b's stretch of blockDim.x values; `planted` leaves the barrier out.
extern "C" __global__ void probe_block_sum(float* out, const float* x, int n, int planted) {
    __shared__ float part[256];
    int at = int(blockIdx.x * blockDim.x + threadIdx.x), lane = int(threadIdx.x);
    part[lane] = at < n ? x[at] : 0.0f;
    for (int step = int(blockDim.x) / 2; step > 0; step /= 2) {
        if (!planted) {
            __syncthreads();
        }
        if (lane < step) {
            part[lane] += part[lane + step];
        }
    }
    if (lane == 0) {
        out[blockIdx.x] = part[0];
    }
}

// out[i] = x[i] + 1 for i < n; `beyond` more are touched.
extern "C" __global__ void probe_add_one(float* out, const float* x, int n, int beyond) {
    int at = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (at < n + beyond) {
        out[at] = x[at] + 1.0f;
    }
}

// out[i] = sum over the warp of x[i], by shuffles and by a vote; `odd` makes half of the warp stay away.
extern "C" __global__ void probe_warp(float* out, unsigned* votes, const float* x, int odd) {
    int lane = int(threadIdx.x);
    if (odd && lane % 2) {
        return;
    }
    float value = x[lane];
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, step);
    }
    out[lane] = value;
    unsigned vote = __ballot_sync(0xffffffffu, x[lane] > 0.0f);
    if (lane == 0) {
        votes[0] = vote;
    }
}

// out = x by way of shared memory and an async copy of 16 bytes a thread; `planted` leaves the wait out.
extern "C" __global__ void probe_copy_async(float* out, const float* x, int planted) {
    SHARED_DYNAMIC(float, stage);
    int at = 4 * int(threadIdx.x);
    taskloom_copy_async(stage + at, x + at, 16, 16);
    taskloom_copy_async_commit();
    if (!planted) {
        taskloom_copy_async_wait(0);
    }
    __syncthreads();
    for (int i = 0; i < 4; ++i) {
        out[at + i] = stage[4 * int(blockDim.x) - 1 - (at + i)];
    }
}

// The last block to finish adds up what the others left; `planted` leaves the fence out.
extern "C" __global__ void probe_last_block(float* out, float* parts, unsigned* done, int planted) {
    parts[blockIdx.x] = float(blockIdx.x);
    if (!planted) {
        __threadfence();
    }
    if (atomicAdd(done, 1u) == gridDim.x - 1) {
        float sum = 0.0f;
        for (unsigned block = 0; block < gridDim.x; ++block) {
            sum += parts[block];
        }
        out[0] = sum;
    }
}

// Half of the block waits at one barrier, half at another.
extern "C" __global__ void probe_divergent(float* out) {
    if (threadIdx.x % 2) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 0.0f;
        __syncthreads();
    }
}

// Reads the float at x + `bytes` as four at once.
extern "C" __global__ void probe_misaligned(float4* out, const char* x, int bytes) {
    out[0] = *reinterpret_cast<const float4*>(x + bytes);
}

// Writes to `where`, whatever lies there.
extern "C" __global__ void probe_store(uint64_t where) {
    *reinterpret_cast<float*>(where) = 1.0f;
}
#endif
