// Matrix products on the tensor cores of compute capability 9.0a: bf16 operands that the copy engine brings, f32 sums.
//
// A block computes tiles of 128 x kWide of the output. The first warpgroup starts copies into a ring of stages of 64 inner
// positions; the other two take tiles in turn, so that one multiplies while the other finishes and stores. In a pair of blocks,
// each brings half of the second operand for both.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#include "../jacobian.cuh"
#include "gemm.cuh"

namespace hopper {

// a b (m x n) with what `finish` says, over inner positions k; b (n x k), or (k x n) with kRowsB.
template <int kWide, bool kRowsB, int kBlocks>
__device__ __forceinline__ void product(const TensorMap* a, const TensorMap* b, const Finish& finish, int k) {
    using Own = Ring<kWide, false, kRowsB, kBlocks>;
    Own ring;
    Tiles<kBlocks> tiles(finish.m, finish.n, kWide, 1);
    int group = warpgroup();
    if (group == 0) {
        give_registers<kRegistersCopying>();
        if (threadIdx.x == 0) {
            tiles.each([&](int, int row, int column) {
                for (int inner = 0; inner < k; inner += kInner) {
                    ring.fill(a, b, row, column, inner, tiles.rank);
                }
            });
        }
    } else {
        take_registers<kRegistersMultiplying>();
        Output<kWide, Own> output(ring, group);
        bool own = group == 1;
        tiles.each([&](int, int row, int column) {
            if (own) {
                float sums[2][kWide / 8][4];
                clear(sums);
                output.begin(finish, row, column);
                ring.wait_for_turn(group);
#pragma unroll 1
                for (int inner = 0; inner < k; inner += kInner) {
                    ring.multiply(sums, kInner, inner == 0);
                }
                ring.pass_turn(group);
                ring.finish();
                if (finish.wide) {
                    output.wide(sums, row, column, finish.m, finish.pitch, finish.bias != nullptr, [&](float (&x)[4], int r, int c) {
                        finish_wide(x, finish, r, c);
                    });
                } else {
                    output.template narrow<kRowsB>(sums, finish, row, column);
                }
            } else {
                ring.skip((k + kInner - 1) / kInner);
            }
            own = !own;
        });
    }
    Own::leave();
}

// Sums of the first operand's rows over the inner positions: its products with ones, which lie where forward products have biases.
template <typename Ring>
struct RowSums {
    float sums[2][1][4];
    uint64_t ones;

    // By all threads, before they part.
    __device__ __forceinline__ static void lay_out(const Ring& ring) {
        if (threadIdx.x < 16) {
            uint32_t pair = pair_of(1.0f, 1.0f);
            store_16(ring.pieces() + Ring::kBiases + 16 * threadIdx.x, make_uint4(pair, pair, pair, pair));
        }
        proxy_fence();
        __syncthreads();
    }

    __device__ __forceinline__ RowSums(const Ring& ring) : ones(constant_operand(ring.pieces() + Ring::kBiases)) { clear(sums); }

    __device__ __forceinline__ void add(int half, uint64_t rows) { Product<8, true, false>::add(sums[half], rows, ones); }

    // Sums of the rows from `row` on, of which there are `count` in all.
    __device__ __forceinline__ void store(const JacobianRow& to, int row, int count) const {
        if (lane_id() % 4 != 0) {
            return;
        }
        int own = row + 16 * (int(threadIdx.x) % 128 / kWarp) + lane_id() / 4;
#pragma unroll
        for (int at = 0; at < 4; ++at) {
            int r = own + 64 * (at / 2) + 8 * (at % 2);
            if (r < count) {
                to.put(r, sums[at / 2][0][at % 2 * 2]);
            }
        }
    }
};

// For every segment s: gradients[offsets[s]..] (outputs x inputs; f32, or bf16 if narrow) = or += dout_s^T x_s over the rows
// starts[s]..ends[s], and gradients[biases[s]..] (outputs) = or += the sums of dout's columns.
template <int kWide, int kBlocks>
__device__ __forceinline__ void weight(const TensorMap* dout, const TensorMap* x, void* gradients, const uint32_t* starts,
                                       const uint32_t* ends, const uint64_t* offsets, const uint64_t* biases, const uint32_t* add,
                                       int segments, int outputs, int inputs, int narrow) {
    using Own = Ring<kWide, true, true, kBlocks>;
    Own ring;
    RowSums<Own>::lay_out(ring);
    Tiles<kBlocks> tiles(outputs, inputs, kWide, segments);
    int group = warpgroup();
    if (group == 0) {
        give_registers<kRegistersCopying>();
        if (threadIdx.x == 0) {
            tiles.each([&](int segment, int row, int column) {
                int end = int(ends[segment]);
                for (int inner = int(starts[segment]); inner < end; inner += kInner) {
                    ring.fill(dout, x, row, column, inner, tiles.rank);
                }
            });
        }
    } else {
        take_registers<kRegistersMultiplying>();
        Output<kWide, Own> output(ring, group);
        bool own = group == 1;
        tiles.each([&](int segment, int row, int column) {
            int begin = int(starts[segment]), end = int(ends[segment]);
            JacobianRow to(gradients, narrow, offsets[segment], add[segment] != 0);
            JacobianRow bias(gradients, narrow, biases[segment], add[segment] != 0);
            if (own) {
                ring.wait_for_turn(group);
            }
            if (own && begin >= end) {
                ring.pass_turn(group);
                for (int at = threadIdx.x % 128; at < kRows * kWide && !to.adds; at += 128) {
                    int r = row + at / kWide, c = column + at % kWide;
                    if (r < outputs && c < inputs) {
                        to.put(uint64_t(r) * inputs + c, 0.0f);
                    }
                    if (r < outputs && c == 0) {
                        bias.put(r, 0.0f);
                    }
                }
            } else if (own) {
                float sums[2][kWide / 8][4];
                clear(sums);
                // The first tile of a row has its biases.
                if (column == 0) {
                    RowSums<Own> rows(ring);
#pragma unroll 1
                    for (int inner = begin; inner < end; inner += kInner) {
                        ring.multiply(sums, end - inner, inner == begin, [&](int half, uint64_t a) { rows.add(half, a); });
                    }
                    ring.pass_turn(group);
                    ring.finish();
                    rows.store(bias, row, outputs);
                } else {
#pragma unroll 1
                    for (int inner = begin; inner < end; inner += kInner) {
                        ring.multiply(sums, end - inner, inner == begin);
                    }
                    ring.pass_turn(group);
                    ring.finish();
                }
                output.wide(sums, row, column, outputs, inputs, false, [&](float (&sum)[4], int r, int c) {
                    to.put(uint64_t(r) * inputs + c, sum, inputs - c);
                });
            } else {
                ring.skip((max(end - begin, 0) + kInner - 1) / kInner);
            }
            own = !own;
        });
    }
    Own::leave();
}

}  // namespace hopper

// The kernels for each width of tile, alone (1) and in pairs of blocks (2). Boxes have 128 rows for a, 64 where it is the dout of
// a weight gradient; for b of a forward product kWide / blocks rows, else 64 / blocks. The grid is a multiple of the blocks of a
// cluster. Arguments as those of the kernels in gemm.cu, and the rows' pitches.
#define TASKLOOM_PRODUCTS(wide, blocks)                                                                                        \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(hopper::kThreads, 1)                           \
        gemm_forward_hopper_##wide##_##blocks(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,   \
                                              bf16* out, float* out_wide, bf16* pre, const float* bias, const bf16* residual,  \
                                              int residual_columns, int residual_pitch, int m, int n, int pitch, int k,        \
                                              int activation) {                                                               \
        hopper::Finish finish{out,     pre,        out_wide, bias, residual, residual_columns, residual_pitch,                 \
                              nullptr, activation, m,        n,    pitch};                                                     \
        hopper::product<wide, false, blocks>(&x, &weight, finish, k);                                                          \
    }                                                                                                                          \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(hopper::kThreads, 1)                           \
        gemm_input_hopper_##wide##_##blocks(const __grid_constant__ TensorMap dout, const __grid_constant__ TensorMap weight,  \
                                            bf16* out, float* out_wide, const bf16* pre, const bf16* residual,                 \
                                            int residual_columns, int residual_pitch, int m, int n, int pitch, int k,          \
                                            int activation) {                                                                 \
        hopper::Finish finish{out, nullptr,    out_wide, nullptr, residual, residual_columns, residual_pitch,                  \
                              pre, activation, m,        n,       pitch};                                                      \
        hopper::product<wide, true, blocks>(&dout, &weight, finish, k);                                                        \
    }                                                                                                                          \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(hopper::kThreads, 1)                           \
        gemm_weight_hopper_##wide##_##blocks(const __grid_constant__ TensorMap dout, const __grid_constant__ TensorMap x,      \
                                             void* gradients, const uint32_t* starts, const uint32_t* ends,                   \
                                             const uint64_t* offsets, const uint64_t* biases, const uint32_t* add,             \
                                             int segments, int outputs, int inputs, int narrow) {                              \
        hopper::weight<wide, blocks>(&dout, &x, gradients, starts, ends, offsets, biases, add, segments, outputs, inputs,      \
                                     narrow);                                                                                  \
    }

TASKLOOM_PRODUCTS(64, 1)
TASKLOOM_PRODUCTS(128, 1)
TASKLOOM_PRODUCTS(192, 1)
TASKLOOM_PRODUCTS(128, 2)
TASKLOOM_PRODUCTS(192, 2)

#endif
