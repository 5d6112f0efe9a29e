// Matrix products: bf16 in, f32 accumulation, on tensor cores (mma.sync), in the three layouts of a linear layer.
//
// Tile: a block makes BM x BN of the output, its 8 (or 4) warps WM x WN each, over steps of 32 of the inner dimension:
//   large 128 x 256, warps 64 x 64 (128 accumulators a thread), 96 KiB; small 64 x 64, warps 32 x 32, 32 KiB.
// Shared memory: 4 stages of an A and a B tile, filled by 16-byte asynchronous copies three steps ahead; one barrier a step.
//   A tile whose rows run along the inner dimension has rows of 4 vectors of 16 bytes, vector v of row r at v ^ (r / 2 % 4);
//   one whose rows run along the output has them at v ^ (r % 8): both let ldmatrix read 8 rows without bank conflicts.
// Rows of bf16 matrices and of `out_wide` begin every pitch_of(columns) elements, so that copies of 16 bytes and pairs of outputs
//   are always aligned; zeros pad what is ragged, in shared memory and in the outputs.
// Floor: 2 M N K operations; each operand read once and the output written once. The large tile does 85 operations a byte it
//   takes from the second-level cache, which is what that cache can feed at 0.6 of the tensor cores' rate on an H200.
#include "activation.cuh"
#include "mma.cuh"

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

    // Calls store(row, column, first, second) for each pair of neighbouring outputs of this thread.
    template <typename Store>
    __device__ __forceinline__ void each(int row, int column, Store store) const {
        int group = lane_id() / 4, thread = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < kTall; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int r = row + warp_row() + 16 * i + 8 * half + group;
#pragma unroll
                for (int j = 0; j < kWide; ++j) {
                    store(r, column + warp_column() + 8 * j + 2 * thread, sums[i][j][2 * half], sums[i][j][2 * half + 1]);
                }
            }
        }
    }
};

// `at` is even.
template <typename T>
__device__ __forceinline__ void store_pair(T* out, uint64_t at, float first, float second) {
    store_pack(out + at, Pack<T, 2>{{from_float<T>(first), from_float<T>(second)}});
}

// What is added to the first columns of a row of `n`: columns c and c + 1 of a matrix of `columns`.
__device__ __forceinline__ void add_residual(float& first, float& second, const bf16* residual, int columns, int r, int c, int n) {
    const bf16* own = residual + uint64_t(r) * pitch_of(columns);
    int end = columns < n ? columns : n;
    first += c < end ? to_float(own[c]) : 0.0f;
    second += c + 1 < end ? to_float(own[c + 1]) : 0.0f;
}

template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void forward(bf16* out, float* out_wide, bf16* pre, const bf16* x, const bf16* weight, const float* bias,
                                        const bf16* residual, int residual_columns, int m, int n, int k, int activation) {
    SHARED_DYNAMIC(bf16, shared);
    Product<BM, BN, WM, WN, true, true> product;
    int row = int(blockIdx.y) * BM, column = int(blockIdx.x) * BN;
    product.run(shared, Operand{x, m, k}, Operand{weight, n, k}, row, column, 0, k);
    product.each(row, column, [&](int r, int c, float first, float second) {
        if (r >= m || c >= pitch_of(n)) {
            return;
        }
        uint64_t at = uint64_t(r) * pitch_of(n) + c;
        if (bias) {
            first += c < n ? bias[c] : 0.0f;
            second += c + 1 < n ? bias[c + 1] : 0.0f;
        }
        if (pre) {
            store_pair(pre, at, first, second);
        }
        first = activate(first, activation);
        second = activate(second, activation);
        if (residual) {
            add_residual(first, second, residual, residual_columns, r, c, n);
        }
        if (out) {
            store_pair(out, at, first, second);
        }
        if (out_wide) {
            store_pair(out_wide, at, first, second);
        }
    });
}

template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void input(bf16* out, float* out_wide, const bf16* dout, const bf16* weight, const bf16* pre,
                                      const bf16* residual, int residual_columns, int m, int n, int k, int activation) {
    SHARED_DYNAMIC(bf16, shared);
    Product<BM, BN, WM, WN, true, false> product;
    int row = int(blockIdx.y) * BM, column = int(blockIdx.x) * BN;
    product.run(shared, Operand{dout, m, k}, Operand{weight, k, n}, row, column, 0, k);
    product.each(row, column, [&](int r, int c, float first, float second) {
        if (r >= m || c >= pitch_of(n)) {
            return;
        }
        uint64_t at = uint64_t(r) * pitch_of(n) + c;
        if (residual) {
            add_residual(first, second, residual, residual_columns, r, c, n);
        }
        if (pre) {
            first *= c < n ? activation_slope(to_float(pre[at]), activation) : 0.0f;
            second *= c + 1 < n ? activation_slope(to_float(pre[at + 1]), activation) : 0.0f;
        }
        if (out) {
            store_pair(out, at, first, second);
        }
        if (out_wide) {
            store_pair(out_wide, at, first, second);
        }
    });
}

template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void weight(float* gradients, const bf16* dout, const bf16* x, const uint32_t* starts,
                                       const uint32_t* ends, const uint64_t* offsets, const uint32_t* add, int outputs, int inputs) {
    SHARED_DYNAMIC(bf16, shared);
    Product<BM, BN, WM, WN, false, false> product;
    int segment = int(blockIdx.z), row = int(blockIdx.y) * BM, column = int(blockIdx.x) * BN;
    int begin = int(starts[segment]), end = int(ends[segment]);
    product.run(shared, Operand{dout, end, outputs}, Operand{x, end, inputs}, row, column, begin, end);
    float* out = gradients + offsets[segment];
    bool adds = add[segment] != 0;
    product.each(row, column, [&](int r, int c, float first, float second) {
        if (r >= outputs || c >= inputs) {
            return;
        }
        bool both = c + 1 < inputs;
        uint64_t at = uint64_t(r) * inputs + c;
        if (adds) {
            first += out[at];
            second += both ? out[at + 1] : 0.0f;
        }
        // A row of J may begin at any multiple of 4 bytes.
        out[at] = first;
        if (both) {
            out[at + 1] = second;
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

// gradients[offsets[s]..] (outputs x inputs, f32) = or += dout_s^T x_s over the packed rows starts[s]..ends[s] of dout
// (rows x outputs) and x (rows x inputs), for every segment s. grid: (inputs tiles, outputs tiles, segments).
extern "C" __global__ void __launch_bounds__(256, 1) gemm_weight(float* gradients, const bf16* dout, const bf16* x,
                                                                 const uint32_t* starts, const uint32_t* ends,
                                                                 const uint64_t* offsets, const uint32_t* add, int outputs,
                                                                 int inputs) {
    gemm::weight<128, 256, 64, 64>(gradients, dout, x, starts, ends, offsets, add, outputs, inputs);
}

extern "C" __global__ void __launch_bounds__(128) gemm_weight_small(float* gradients, const bf16* dout, const bf16* x,
                                                                    const uint32_t* starts, const uint32_t* ends,
                                                                    const uint64_t* offsets, const uint32_t* add, int outputs,
                                                                    int inputs) {
    gemm::weight<64, 64, 32, 32>(gradients, dout, x, starts, ends, offsets, add, outputs, inputs);
}
