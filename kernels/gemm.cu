// Matrix products: bf16 in, f32 accumulation, on tensor cores (mma.sync), in the three layouts of a linear layer.
//
// Tile: a block makes BM x BN of the output, its 8 (or 4) warps WM x WN each, over steps of 32 of the inner dimension:
//   large 128 x 256, warps 64 x 64 (128 accumulators a thread), 96 KiB; small 64 x 64, warps 32 x 32, 32 KiB.
// Shared memory: 4 stages of an A and a B tile, filled by 16-byte asynchronous copies three steps ahead; one barrier a step.
//   A tile whose rows run along the inner dimension has rows of 4 vectors of 16 bytes, vector v of row r at v ^ (r / 2 % 4);
//   one whose rows run along the output has them at v ^ (r % 8): both let ldmatrix read 8 rows without bank conflicts.
// Rows of bf16 matrices and of `out_wide` begin every pitch_of(columns) elements, so that copies of 16 bytes and eight outputs
//   are always aligned; zeros pad what is ragged, in shared memory and in the outputs.
// Floor: 2 M N K operations; each operand read once and the output written once. The large tile does 85 operations a byte it
//   takes from the second-level cache, which is what that cache can feed at 0.6 of the tensor cores' rate on an H200.
// Outputs go through shared memory, 32 rows of a warp at a time, so that a thread has eight neighbours and what is done with them is
//   a loop: unrolled by accumulators it would not fit the instruction cache.
#include "activation.cuh"
#include "jacobian.cuh"
#include "vectors.cuh"

namespace gemm {

constexpr int kStep = 32;
constexpr int kStages = 4;
constexpr int kVector = 8;

// An operand in global memory: `rows` x `columns`, row-major, rows pitch_of(columns) apart. kInner: its columns are the inner
// dimension.
struct Operand {
    const bf16* data;
    int rows;
    int columns;
};

// One operand's tiles in shared memory: `kSide` of the output's dimension by kStep of the inner one.
template <int kSide, bool kInner, int kThreads>
struct Tile {
    static constexpr int kRows = kInner ? kSide : kStep;
    static constexpr int kVectors = (kInner ? kStep : kSide) / kVector;
    static constexpr int kSize = kSide * kStep;

    __device__ static __forceinline__ int place(int row, int vector) {
        int swizzled = kInner ? vector ^ (row / 2 % 4) : vector ^ (row % 8);
        return (row * kVectors + swizzled) * kVector;
    }

    // Starts filling `tile` with the operand's rows from `row` and columns from `column`; zeros beyond `rows` and `columns`.
    __device__ static __forceinline__ void fill(bf16* tile, const Operand& operand, int row, int column) {
        int pitch = pitch_of(operand.columns);
#pragma unroll
        for (int index = 0; index < kRows * kVectors / kThreads; ++index) {
            int item = int(threadIdx.x) + index * kThreads;
            int r = item / kVectors, v = item % kVectors;
            int from = column + v * kVector;
            int left = row + r < operand.rows ? operand.columns - from : 0;
            left = left < 0 ? 0 : left > kVector ? kVector : left;
            const bf16* source = left > 0 ? operand.data + uint64_t(row + r) * pitch + from : operand.data;
            copy_async_16(tile + place(r, v), source, left * int(sizeof(bf16)));
        }
    }

    // Fragment of 16 of the output's dimension from `side` by 16 inner from `inner`; kLeft: as mma's a, else as its two b.
    template <bool kLeft>
    __device__ static __forceinline__ void fragment(uint32_t (&r)[4], const bf16* tile, int side, int inner) {
        int lane = lane_id(), low = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
        int s = side + (kLeft ? first : second), k = inner + (kLeft ? second : first);
        if (kInner) {
            ldmatrix(r, tile + place(s + low, k / kVector));
        } else {
            ldmatrix_transposed(r, tile + place(k + low, s / kVector));
        }
    }
};

template <int BM, int BN, int WM, int WN, bool kInnerA, bool kInnerB>
struct Product {
    static constexpr int kThreads = BM / WM * (BN / WN) * kWarp;
    static constexpr int kTall = WM / 16;
    static constexpr int kWide = WN / 8;
    typedef Tile<BM, kInnerA, kThreads> TileA;
    typedef Tile<BN, kInnerB, kThreads> TileB;

    float sums[kTall][kWide][4];

    __device__ __forceinline__ static int warp_row() { return warp_id() / (BN / WN) * WM; }
    __device__ __forceinline__ static int warp_column() { return warp_id() % (BN / WN) * WN; }

    __device__ __forceinline__ void step(const bf16* a, const bf16* b) {
#pragma unroll
        for (int inner = 0; inner < kStep; inner += 16) {
            uint32_t left[kTall][4], right[kWide / 2][4];
#pragma unroll
            for (int i = 0; i < kTall; ++i) {
                TileA::template fragment<true>(left[i], a, warp_row() + 16 * i, inner);
            }
#pragma unroll
            for (int j = 0; j < kWide / 2; ++j) {
                TileB::template fragment<false>(right[j], b, warp_column() + 16 * j, inner);
            }
#pragma unroll
            for (int i = 0; i < kTall; ++i) {
#pragma unroll
                for (int j = 0; j < kWide; ++j) {
                    uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
                    mma_bf16(sums[i][j], left[i], pair);
                }
            }
        }
    }

    // sums = the block's tile at (row, column) of the output, over inner positions begin .. end.
    __device__ __forceinline__ void run(bf16* shared, const Operand& a, const Operand& b, int row, int column, int begin, int end) {
#pragma unroll
        for (int i = 0; i < kTall; ++i) {
#pragma unroll
            for (int j = 0; j < kWide; ++j) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    sums[i][j][k] = 0.0f;
                }
            }
        }
        int steps = (end - begin + kStep - 1) / kStep;
        bf16* tiles_a = shared;
        bf16* tiles_b = shared + kStages * TileA::kSize;
        auto fill = [&](int next) {
            if (next < steps) {
                int stage = next % kStages, inner = begin + next * kStep;
                TileA::fill(tiles_a + stage * TileA::kSize, a, kInnerA ? row : inner, kInnerA ? inner : row);
                TileB::fill(tiles_b + stage * TileB::kSize, b, kInnerB ? column : inner, kInnerB ? inner : column);
            }
            copy_async_commit();
        };
        for (int next = 0; next < kStages - 1; ++next) {
            fill(next);
        }
        for (int now = 0; now < steps; ++now) {
            copy_async_wait<kStages - 2>();
            // Step `now` has arrived for all, and all are through with the stage that is filled next.
            __syncthreads();
            fill(now + kStages - 1);
            step(tiles_a + now % kStages * TileA::kSize, tiles_b + now % kStages * TileB::kSize);
        }
    }

    // Calls finish(row, column, values) for every eight neighbouring outputs, from each column that is a multiple of eight. Overwrites
    // the operands' tiles.
    template <typename Finish>
    __device__ __forceinline__ void each(bf16* shared, int row, int column, Finish finish) const {
        constexpr int kRows = 32, kVectors = WN / kVector;
        // Eight floats more than a row has: the 16 lanes whose pairs are stored together then meet each bank once.
        constexpr int kPitch = WN + 8;
        float* own = reinterpret_cast<float*>(shared) + warp_id() * kRows * kPitch;
        float* pairs = own + lane_id() / 4 * kPitch + lane_id() % 4 * 2;
        // Everyone is through with the operands.
        __syncthreads();
#pragma unroll
        for (int part = 0; part < WM / kRows; ++part) {
#pragma unroll
            for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
                for (int j = 0; j < kWide; ++j) {
                    const float(&four)[4] = sums[part * (kRows / 16) + i][j];
                    store_pack(pairs + 16 * i * kPitch + 8 * j, Pack<float, 2>{{four[0], four[1]}});
                    store_pack(pairs + (16 * i + 8) * kPitch + 8 * j, Pack<float, 2>{{four[2], four[3]}});
                }
            }
            __syncwarp();
#pragma unroll 1
            for (int item = lane_id(); item < kRows * kVectors; item += kWarp) {
                int r = item / kVectors, c = item % kVectors * kVector;
                Floats values = load_floats(own + r * kPitch + c);
                finish(row + warp_row() + part * kRows + r, column + warp_column() + c, values);
            }
            __syncwarp();
        }
    }
};

// Columns c to c + 7 of a row, zero from column `end` on.
__device__ __forceinline__ Floats load_eight(const bf16* row, int c, int end) {
    if (c + kVector <= end) {
        return widen(load_raw(row + c));
    }
    Floats values;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        values.at[i] = c + i < end ? to_float(row[c + i]) : 0.0f;
    }
    return values;
}

// Adds the columns from c on of row r of a matrix of `columns`, as far as the output's `n` go.
__device__ __forceinline__ void add_residual(Floats& values, const bf16* residual, int columns, int r, int c, int n) {
    Floats own = load_eight(residual + uint64_t(r) * pitch_of(columns), c, columns < n ? columns : n);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        values.at[i] += own.at[i];
    }
}

// To the output that is not null, or to both.
__device__ __forceinline__ void store_outputs(bf16* out, float* out_wide, uint64_t at, const Floats& values) {
    if (out) {
        store_raw(out + at, narrowed(values));
    }
    if (out_wide) {
        store_floats(out_wide + at, values);
    }
}

template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void forward(bf16* out, float* out_wide, bf16* pre, const bf16* x, const bf16* weight, const float* bias,
                                        const bf16* residual, int residual_columns, int m, int n, int k, int activation) {
    SHARED_DYNAMIC(bf16, shared);
    Product<BM, BN, WM, WN, true, true> product;
    int row = int(blockIdx.y) * BM, column = int(blockIdx.x) * BN;
    product.run(shared, Operand{x, m, k}, Operand{weight, n, k}, row, column, 0, k);
    product.each(shared, row, column, [&](int r, int c, Floats& values) {
        if (r >= m || c >= pitch_of(n)) {
            return;
        }
        uint64_t at = uint64_t(r) * pitch_of(n) + c;
        if (bias) {
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                values.at[i] += c + i < n ? bias[c + i] : 0.0f;
            }
        }
        if (pre) {
            store_raw(pre + at, narrowed(values));
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            values.at[i] = activate(values.at[i], activation);
        }
        if (residual) {
            add_residual(values, residual, residual_columns, r, c, n);
        }
        store_outputs(out, out_wide, at, values);
    });
}

template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void input(bf16* out, float* out_wide, const bf16* dout, const bf16* weight, const bf16* pre,
                                      const bf16* residual, int residual_columns, int m, int n, int k, int activation) {
    SHARED_DYNAMIC(bf16, shared);
    Product<BM, BN, WM, WN, true, false> product;
    int row = int(blockIdx.y) * BM, column = int(blockIdx.x) * BN;
    product.run(shared, Operand{dout, m, k}, Operand{weight, k, n}, row, column, 0, k);
    product.each(shared, row, column, [&](int r, int c, Floats& values) {
        if (r >= m || c >= pitch_of(n)) {
            return;
        }
        uint64_t at = uint64_t(r) * pitch_of(n) + c;
        if (residual) {
            add_residual(values, residual, residual_columns, r, c, n);
        }
        if (pre) {
            Floats argument = load_eight(pre + uint64_t(r) * pitch_of(n), c, n);
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                values.at[i] *= c + i < n ? activation_slope(argument.at[i], activation) : 0.0f;
            }
        }
        store_outputs(out, out_wide, at, values);
    });
}

template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void weight(void* gradients, const bf16* dout, const bf16* x, const uint32_t* starts,
                                       const uint32_t* ends, const uint64_t* offsets, const uint32_t* add, int outputs, int inputs,
                                       int narrow) {
    SHARED_DYNAMIC(bf16, shared);
    Product<BM, BN, WM, WN, false, false> product;
    int segment = int(blockIdx.z), row = int(blockIdx.y) * BM, column = int(blockIdx.x) * BN;
    int begin = int(starts[segment]), end = int(ends[segment]);
    product.run(shared, Operand{dout, end, outputs}, Operand{x, end, inputs}, row, column, begin, end);
    JacobianRow out(gradients, narrow, offsets[segment], add[segment] != 0);
    product.each(shared, row, column, [&](int r, int c, Floats& values) {
        if (r < outputs && c < inputs) {
            out.put(uint64_t(r) * inputs + c, values.at, inputs - c);
        }
    });
}

}  // namespace gemm

// out and/or out_wide (m x n) = f(x W^T + bias) + residual; x (m x k), W (n x k). pre (m x n): the activation's argument, or null. bias (n) f32
// or null; residual (m x residual_columns), added to the first columns, or null. grid: (n tiles, m tiles).
extern "C" __global__ void __launch_bounds__(256, 1) gemm_forward(bf16* out, float* out_wide, bf16* pre, const bf16* x, const bf16* weight,
                                                                  const float* bias, const bf16* residual, int residual_columns,
                                                                  int m, int n, int k, int activation) {
    gemm::forward<128, 256, 64, 64>(out, out_wide, pre, x, weight, bias, residual, residual_columns, m, n, k, activation);
}

extern "C" __global__ void __launch_bounds__(128) gemm_forward_small(bf16* out, float* out_wide, bf16* pre, const bf16* x, const bf16* weight,
                                                                     const float* bias, const bf16* residual, int residual_columns,
                                                                     int m, int n, int k, int activation) {
    gemm::forward<64, 64, 32, 32>(out, out_wide, pre, x, weight, bias, residual, residual_columns, m, n, k, activation);
}

// out and/or out_wide (m x n) = (dout W + residual) f'(pre); dout (m x k), W (k x n). pre (m x n) and residual
// (m x residual_columns) or null. grid: (n tiles, m tiles).
extern "C" __global__ void __launch_bounds__(256, 1) gemm_input(bf16* out, float* out_wide, const bf16* dout, const bf16* weight,
                                                                const bf16* pre, const bf16* residual, int residual_columns, int m,
                                                                int n, int k, int activation) {
    gemm::input<128, 256, 64, 64>(out, out_wide, dout, weight, pre, residual, residual_columns, m, n, k, activation);
}

extern "C" __global__ void __launch_bounds__(128) gemm_input_small(bf16* out, float* out_wide, const bf16* dout, const bf16* weight,
                                                                   const bf16* pre, const bf16* residual, int residual_columns,
                                                                   int m, int n, int k, int activation) {
    gemm::input<64, 64, 32, 32>(out, out_wide, dout, weight, pre, residual, residual_columns, m, n, k, activation);
}

// gradients[offsets[s]..] (outputs x inputs; f32, or bf16 if narrow) = or += dout_s^T x_s over the packed rows starts[s]..ends[s] of
// dout (rows x outputs) and x (rows x inputs), for every segment s. grid: (inputs tiles, outputs tiles, segments).
extern "C" __global__ void __launch_bounds__(256, 1) gemm_weight(void* gradients, const bf16* dout, const bf16* x,
                                                                 const uint32_t* starts, const uint32_t* ends,
                                                                 const uint64_t* offsets, const uint32_t* add, int outputs,
                                                                 int inputs, int narrow) {
    gemm::weight<128, 256, 64, 64>(gradients, dout, x, starts, ends, offsets, add, outputs, inputs, narrow);
}

extern "C" __global__ void __launch_bounds__(128) gemm_weight_small(void* gradients, const bf16* dout, const bf16* x,
                                                                    const uint32_t* starts, const uint32_t* ends,
                                                                    const uint64_t* offsets, const uint32_t* add, int outputs,
                                                                    int inputs, int narrow) {
    gemm::weight<64, 64, 32, 32>(gradients, dout, x, starts, ends, offsets, add, outputs, inputs, narrow);
}
