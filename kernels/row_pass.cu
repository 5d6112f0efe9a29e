// The pass of a surgery method that keeps a buffer b of each task's gradient g: over columns of J, and over the rows of the
// embedding table that a task touched. Either b = keep b + add g and g = b, or b = b + (factor g)^2, whose
// (factor g)^2 / sqrt(b + eps) are added up; f64 on the way. What a block adds up is one number, and these are added in order.
// Floor: 16 bytes a column and task for the first (g and b, read and written), 12 for the second.
#include "common.cuh"

namespace row_pass {

// The kind of the first of the two.
constexpr uint64_t kBlend = 0;

// Keep and add, or factor and eps.
struct Pass {
    uint64_t kind;
    double first;
    double second;
};

// `length` elements, the block's own; what they add up to, on every thread. `warps` is shared.
__device__ __forceinline__ double run(const Pass& pass, float* __restrict__ gradient, float* __restrict__ buffer, uint64_t length,
                                      double* warps) {
    double sum = 0.0;
    if (pass.kind == kBlend) {
#pragma unroll 4
        for (uint64_t at = threadIdx.x; at < length; at += blockDim.x) {
            float b = float(pass.first * double(buffer[at]) + pass.second * double(gradient[at]));
            buffer[at] = b;
            gradient[at] = b;
        }
    } else {
#pragma unroll 4
        for (uint64_t at = threadIdx.x; at < length; at += blockDim.x) {
            double g = pass.first * double(gradient[at]);
            float b = float(double(buffer[at]) + g * g);
            buffer[at] = b;
            sum += g * g / sqrt(double(b) + pass.second);
        }
    }
    return block_sum(sum, warps);
}

}  // namespace row_pass

// partials (tasks x chunks) f64. jacobian (tasks x stride), the buffer of task t from buffers + offsets[t] on; passes
// (sets x tasks), of which chunk c takes those of sets[c]. grid: (chunks, tasks).
extern "C" __global__ void __launch_bounds__(256) row_pass_columns(double* partials, float* jacobian, uint64_t stride,
                                                                   float* buffers, const uint64_t* offsets,
                                                                   const row_pass::Pass* passes, const uint32_t* sets,
                                                                   const uint64_t* firsts, const uint32_t* lengths) {
    __shared__ double warps[kWarp];
    uint32_t chunk = blockIdx.x, task = blockIdx.y;
    uint64_t first = firsts[chunk];
    row_pass::Pass pass = passes[sets[chunk] * gridDim.y + task];
    float* gradient = jacobian + task * stride + first;
    double sum = row_pass::run(pass, gradient, buffers + offsets[task] + first, lengths[chunk], warps);
    if (threadIdx.x == 0) {
        partials[task * gridDim.x + chunk] = sum;
    }
}

// partials (gradient rows) f64. gradients (gradient rows x dim) of all tasks end to end, row r being of task tasks[r], with its
// buffer in row places[r] of buffers; passes (tasks). grid: gradient rows, a block each.
extern "C" __global__ void __launch_bounds__(256) row_pass_rows(double* partials, float* gradients, float* buffers,
                                                                const uint64_t* places, const uint32_t* tasks,
                                                                const row_pass::Pass* passes, int dim) {
    __shared__ double warps[kWarp];
    uint32_t row = blockIdx.x;
    row_pass::Pass pass = passes[tasks[row]];
    double sum = row_pass::run(pass, gradients + uint64_t(row) * dim, buffers + places[row] * dim, uint64_t(dim), warps);
    if (threadIdx.x == 0) {
        partials[row] = sum;
    }
}

// sums (sets x tasks) f64 of the partial sums of both; starts (tasks + 1) are the bounds of a task's rows, which are of
// `table_set`, or null. grid: (tasks, sets).
extern "C" __global__ void __launch_bounds__(256) row_pass_sums(double* sums, const double* columns, int chunks,
                                                                const uint32_t* sets, const double* rows, const uint32_t* starts,
                                                                int table_set) {
    __shared__ double warps[kWarp];
    uint32_t task = blockIdx.x, set = blockIdx.y;
    double sum = 0.0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
        sum += sets[chunk] == set ? columns[uint64_t(task) * chunks + chunk] : 0.0;
    }
    if (starts && int(set) == table_set) {
        for (uint32_t row = starts[task] + threadIdx.x; row < starts[task + 1]; row += blockDim.x) {
            sum += rows[row];
        }
    }
    double total = block_sum(sum, warps);
    if (threadIdx.x == 0) {
        sums[set * gridDim.x + task] = total;
    }
}
