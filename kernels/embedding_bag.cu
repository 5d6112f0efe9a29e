// Embedding bag forward: out_e = scale_e * sum of the rows of example e, from a table of which only touched rows are stored.
//
// A block an example, threads along the width, rows in ascending order as on the CPU. No shared memory.
// Floor: 4 bytes a value of each n-gram's row, 2 a value written; one addition a value.
#include "row_init.cuh"

// out (examples x dim, rows pitch_of(dim) apart) bf16 and/or out_wide (examples x dim, dense) f32. Example e has the n-grams
// offsets[e] .. offsets[e + 1]; slots says where the row of each lies in values (slots x dim), or kUntouchedRow, where rows has its
// number unless deviation is 0. grid: examples.
extern "C" __global__ void __launch_bounds__(256) embedding_bag_forward(bf16* out, float* out_wide, const uint32_t* offsets,
                                                                        const uint32_t* rows, const uint32_t* slots,
                                                                        const float* scales, const float* values, int dim,
                                                                        uint64_t seed, double deviation) {
    uint32_t example = blockIdx.x;
    uint32_t start = offsets[example], end = offsets[example + 1];
    for (int column = threadIdx.x; column < dim; column += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 4
        for (uint32_t at = start; at < end; ++at) {
            uint32_t slot = slots[at];
            if (slot != kUntouchedRow) {
                sum += values[uint64_t(slot) * dim + column];
            } else if (deviation != 0.0) {
                sum += initial_value(seed, deviation, rows[at], column);
            }
        }
        sum *= scales[example];
        if (out) {
            out[uint64_t(example) * pitch_of(dim) + column] = from_float<bf16>(sum);
        }
        if (out_wide) {
            out_wide[uint64_t(example) * dim + column] = sum;
        }
    }
}

// values[slots[i]] = the initial row rows[i], for those of *count rows whose slot is *first or a later one. grid: any.
extern "C" __global__ void __launch_bounds__(256) embedding_rows_init(float* values, const uint32_t* rows, const uint32_t* slots,
                                                                      const uint32_t* count, const uint32_t* first, int dim,
                                                                      uint64_t seed, double deviation) {
    for (uint32_t i = blockIdx.x; i < *count; i += gridDim.x) {
        uint32_t slot = slots[i];
        if (slot < *first) {
            continue;
        }
        for (int column = threadIdx.x; column < dim; column += blockDim.x) {
            float value = deviation == 0.0 ? 0.0f : initial_value(seed, deviation, rows[i], column);
            values[uint64_t(slot) * dim + column] = value;
        }
    }
}
