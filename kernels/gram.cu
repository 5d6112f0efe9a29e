// Gram matrices of the private gradients: every product of two rows of J, for all blocks of columns in one pass.
//
// J is (T x stride), f32 or bf16. The columns of a run's blocks (a layer, a tensor, the whole model) are cut into chunks; chunk c is
// `lengths[c]` columns from `firsts[c]` and lies in one block. Each chunk leaves T x T partial products in f64
// (`partials[c]`, the upper triangle), and `gram_finish` adds the partials of each block in order.
//
// Precision: a lane adds 32 products in f32, a warp adds its lanes as a tree, all else is f64: below 1e-6 of an entry on
// nearly parallel rows.
//
// gram_<T>: 256 threads a chunk, T(T+1)/2 accumulators a thread in registers; warp w takes batches w, w+8, .. of 32 x 32
//   columns, lane l column 32 k + l of its batch, or of bf16 columns 64 k + 2 l and the next. No shared memory but 8 x T(T+1)/2
//   doubles at the end.
//   Floor: 4 (or 2) T bytes and T(T+1)/2 FMA a column; T = 16 needs 34 FMA per 16 bytes, a third of what the H200's f32 units do
//   while its memory delivers them.
// gram_tile: T > 16. One block per (pair of row groups of 8, chunk), pairs fastest, so that a chunk's rows are read from
//   memory once and then from the second-level cache.
#include "jacobian.cuh"

namespace gram {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Products a lane adds in f32.
constexpr int kFold = 32;

__host__ __device__ constexpr int padded(int values) { return (values + kWarp - 1) / kWarp * kWarp; }

// What a lane loads of a row at a time: an f32, or two neighbours of bf16.
template <typename T>
struct Own;

template <>
struct Own<float> {
    static constexpr int kCount = 1;
    float value;

    // The column `at` of a row that is there, as far as it lies in first .. end; zero else.
    __device__ __forceinline__ void load(const float* row, uint64_t at, uint64_t, uint64_t end, bool is_there) {
        value = at < end && is_there ? row[at] : 0.0f;
    }

    __device__ __forceinline__ float number(int) const { return value; }
};

template <>
struct Own<bf16> {
    static constexpr int kCount = 2;
    uint32_t pair;

    // `at` is even, as the rows' stride.
    __device__ __forceinline__ void load(const bf16* row, uint64_t at, uint64_t first, uint64_t end, bool is_there) {
        bool low = at >= first && at < end && is_there, high = at + 1 >= first && at + 1 < end && is_there;
        if (low && high) {
            pair = load_pack<uint32_t>(row + at);
        } else {
            pair = low ? row[at] : high ? uint32_t(row[at + 1]) << 16 : 0;
        }
    }

    __device__ __forceinline__ float number(int i) const { return bits_of<float>(i == 0 ? pair << 16 : pair & 0xffff0000u); }
};

// One batch of 32 x 32 columns from `column`, added to `totals`; columns before `first` and from `end` on count as zero. Rows i of
// `left` times rows j of `right`; `triangle`: they are the same rows, and only i <= j counts.
template <int L, int R, bool triangle, int N, typename T>
__device__ __forceinline__ void batch(double (&totals)[N / kWarp], const T* left, const T* right, int left_rows, int right_rows,
                                      uint64_t stride, uint64_t column, uint64_t first, uint64_t end) {
    constexpr int kCount = Own<T>::kCount;
    float sums[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        sums[i] = 0.0f;
    }
    // Loads in flight: enough bytes a multiprocessor to cover the latency of memory.
    constexpr int kAhead = triangle ? (L <= 4 ? 8 : 2) / kCount : 1;
#pragma unroll kAhead
    for (int k = 0; k < kFold / kCount; ++k) {
        uint64_t at = column + (uint64_t(k) * kWarp + lane_id()) * kCount;
        Own<T> own[L], other[R];
#pragma unroll
        for (int i = 0; i < L; ++i) {
            own[i].load(left + i * stride, at, first, end, i < left_rows);
        }
#pragma unroll
        for (int j = 0; j < R && !triangle; ++j) {
            other[j].load(right + j * stride, at, first, end, j < right_rows);
        }
#pragma unroll
        for (int column = 0; column < kCount; ++column) {
            int value = 0;
#pragma unroll
            for (int i = 0; i < L; ++i) {
                float a = own[i].number(column);
#pragma unroll
                for (int j = triangle ? i : 0; j < R; ++j) {
                    sums[value] = fmaf(a, triangle ? own[j].number(column) : other[j].number(column), sums[value]);
                    ++value;
                }
            }
        }
    }
    scatter_sums(sums);
#pragma unroll
    for (int i = 0; i < N / kWarp; ++i) {
        totals[i] += double(sums[i]);
    }
}

// Products of a chunk for up to L x R rows, left in `out` (values in the order of `batch`), which is shared.
template <int L, int R, bool triangle, int N, typename T>
__device__ __forceinline__ void chunk(double* out, const T* left, const T* right, int left_rows, int right_rows, uint64_t stride,
                                      uint64_t first, uint64_t length) {
    double totals[N / kWarp];
#pragma unroll
    for (int i = 0; i < N / kWarp; ++i) {
        totals[i] = 0.0;
    }
    constexpr uint64_t kBatch = kFold * kWarp;
    uint64_t end = first + length;
    for (uint64_t at = first / Own<T>::kCount * Own<T>::kCount + uint64_t(warp_id()) * kBatch; at < end; at += kWarps * kBatch) {
        batch<L, R, triangle, N>(totals, left, right, left_rows, right_rows, stride, at, first, end);
    }
#pragma unroll
    for (int i = 0; i < N / kWarp; ++i) {
        out[warp_id() * N + lane_id() * (N / kWarp) + i] = totals[i];
    }
    __syncthreads();
}

template <int N>
__device__ __forceinline__ double over_warps(const double* sums, int value) {
    double total = 0.0;
    for (int warp = 0; warp < kWarps; ++warp) {
        total += sums[warp * N + value];
    }
    return total;
}

// Chunk blockIdx.x for `tasks` <= T rows.
template <int T>
__device__ __forceinline__ void gram_rows(double* partials, const void* jacobian, uint64_t stride, int tasks, const uint64_t* firsts,
                                          const uint32_t* lengths, int narrow) {
    constexpr int N = padded(T * (T + 1) / 2);
    __shared__ double sums[kWarps * N];
    with_rows(jacobian, narrow, [&](auto rows) {
        chunk<T, T, true, N>(sums, rows, rows, tasks, tasks, stride, firsts[blockIdx.x], lengths[blockIdx.x]);
    });
    double* partial = partials + uint64_t(blockIdx.x) * tasks * tasks;
    for (int cell = threadIdx.x; cell < T * T; cell += kThreads) {
        int i = cell / T, j = cell % T;
        if (i <= j && j < tasks) {
            partial[i * tasks + j] = over_warps<N>(sums, i * T - i * (i - 1) / 2 + (j - i));
        }
    }
}

}  // namespace gram

// partials (chunks x tasks x tasks) f64, upper triangles; J is bf16 if narrow. grid: chunks; tasks <= the number in the name.
extern "C" __global__ void __launch_bounds__(256) gram_2(double* partials, const void* jacobian, uint64_t stride, int tasks,
                                                         const uint64_t* firsts, const uint32_t* lengths, int narrow) {
    gram::gram_rows<2>(partials, jacobian, stride, tasks, firsts, lengths, narrow);
}

extern "C" __global__ void __launch_bounds__(256) gram_4(double* partials, const void* jacobian, uint64_t stride, int tasks,
                                                         const uint64_t* firsts, const uint32_t* lengths, int narrow) {
    gram::gram_rows<4>(partials, jacobian, stride, tasks, firsts, lengths, narrow);
}

extern "C" __global__ void __launch_bounds__(256) gram_8(double* partials, const void* jacobian, uint64_t stride, int tasks,
                                                         const uint64_t* firsts, const uint32_t* lengths, int narrow) {
    gram::gram_rows<8>(partials, jacobian, stride, tasks, firsts, lengths, narrow);
}

extern "C" __global__ void __launch_bounds__(256) gram_12(double* partials, const void* jacobian, uint64_t stride, int tasks,
                                                          const uint64_t* firsts, const uint32_t* lengths, int narrow) {
    gram::gram_rows<12>(partials, jacobian, stride, tasks, firsts, lengths, narrow);
}

extern "C" __global__ void __launch_bounds__(256) gram_16(double* partials, const void* jacobian, uint64_t stride, int tasks,
                                                          const uint64_t* firsts, const uint32_t* lengths, int narrow) {
    gram::gram_rows<16>(partials, jacobian, stride, tasks, firsts, lengths, narrow);
}

// Any number of tasks; grid: (pairs (a <= b) of groups of 8 rows, chunks).
extern "C" __global__ void __launch_bounds__(256, 2) gram_tile(double* partials, const void* jacobian, uint64_t stride, int tasks,
                                                            const uint64_t* firsts, const uint32_t* lengths, int narrow) {
    constexpr int kSide = 8;
    constexpr int N = kSide * kSide;
    __shared__ double sums[gram::kWarps * N];
    int groups = (tasks + kSide - 1) / kSide;
    int a = 0, b = int(blockIdx.x);
    while (b >= groups - a) {
        b -= groups - a;
        ++a;
    }
    b += a;
    int i0 = a * kSide, j0 = b * kSide;
    with_rows(jacobian, narrow, [&](auto rows) {
        gram::chunk<kSide, kSide, false, N>(sums, rows + i0 * stride, rows + j0 * stride, tasks - i0, tasks - j0, stride,
                                            firsts[blockIdx.y], lengths[blockIdx.y]);
    });
    double* partial = partials + uint64_t(blockIdx.y) * tasks * tasks;
    int i = int(threadIdx.x) / kSide, j = int(threadIdx.x) % kSide;
    if (int(threadIdx.x) < N && i0 + i <= j0 + j && j0 + j < tasks) {
        partial[(i0 + i) * tasks + j0 + j] = gram::over_warps<N>(sums, int(threadIdx.x));
    }
}

// gram (blocks x tasks x tasks) and cosines (the same; 0 where a row is zero), both symmetric; conflicts (blocks): pairs with
// a negative product. Block r adds partials bounds[r].x..bounds[r].y in a fixed order: the 32 warps take every 32nd each.
// grid: blocks; 1024 threads; 32 x 33 doubles of shared memory.
extern "C" __global__ void __launch_bounds__(1024) gram_finish(double* gram, double* cosines, uint32_t* conflicts,
                                                               const double* partials, const uint2* bounds, int tasks) {
    __shared__ double sums[kWarp][kWarp + 1];
    __shared__ uint32_t flags[kWarp];
    int cells = tasks * tasks;
    double* own = gram + uint64_t(blockIdx.x) * cells;
    uint32_t start = bounds[blockIdx.x].x, end = bounds[blockIdx.x].y;
    for (int base = 0; base < cells; base += kWarp) {
        int cell = base + lane_id();
        bool wanted = cell < cells && cell / tasks <= cell % tasks;
        double sum = 0.0;
        if (wanted) {
            for (uint32_t partial = start + warp_id(); partial < end; partial += kWarp) {
                sum += partials[uint64_t(partial) * cells + cell];
            }
        }
        sums[warp_id()][lane_id()] = sum;
        __syncthreads();
        if (warp_id() == 0 && wanted) {
            double total = 0.0;
            for (int warp = 0; warp < kWarp; ++warp) {
                total += sums[warp][lane_id()];
            }
            own[cell] = total;
            own[cell % tasks * tasks + cell / tasks] = total;
        }
        __syncthreads();
    }
    uint32_t negative = 0;
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
        int i = cell / tasks, j = cell % tasks;
        double scale = sqrt(fmax(own[i * tasks + i], 0.0)) * sqrt(fmax(own[j * tasks + j], 0.0));
        cosines[uint64_t(blockIdx.x) * cells + cell] = scale > 0.0 ? own[cell] / scale : 0.0;
        negative += i < j && own[cell] < 0.0 ? 1 : 0;
    }
    uint32_t total = block_sum(negative, flags);
    if (threadIdx.x == 0) {
        conflicts[blockIdx.x] = total;
    }
}
