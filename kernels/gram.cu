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
// gram_tile: T > 16. A block per (pair of groups of 32 rows, chunk), pairs fastest, so that a chunk's rows are read from memory once and
//   then from the second-level cache. 64 columns at a time lie in shared memory, column by column; 16 threads multiply 8 rows by 8 rows
//   each of one column in 16, which they add in f32 32 times.
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

// Products of a chunk for rows i <= j of `count`, at most T: each warp's own, in this order, left in `out`, which is shared.
template <int T, int N, typename E>
__device__ __forceinline__ void chunk(double* out, const E* rows, int count, uint64_t stride, uint64_t first, uint64_t length) {
    constexpr int kCount = Own<E>::kCount;
    // Loads in flight: enough bytes a multiprocessor to cover the latency of memory.
    constexpr int kAhead = (T <= 4 ? 8 : 2) / kCount;
    constexpr uint64_t kBatch = kFold * kWarp;
    double totals[N / kWarp];
#pragma unroll
    for (int i = 0; i < N / kWarp; ++i) {
        totals[i] = 0.0;
    }
    uint64_t end = first + length;
    // Columns before `first` and from `end` on count as zero.
    for (uint64_t batch = first / kCount * kCount + uint64_t(warp_id()) * kBatch; batch < end; batch += kWarps * kBatch) {
        float sums[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            sums[i] = 0.0f;
        }
#pragma unroll kAhead
        for (int k = 0; k < kFold / kCount; ++k) {
            uint64_t at = batch + (uint64_t(k) * kWarp + lane_id()) * kCount;
            Own<E> own[T];
#pragma unroll
            for (int i = 0; i < T; ++i) {
                own[i].load(rows + i * stride, at, first, end, i < count);
            }
#pragma unroll
            for (int column = 0; column < kCount; ++column) {
                int value = 0;
#pragma unroll
                for (int i = 0; i < T; ++i) {
#pragma unroll
                    for (int j = i; j < T; ++j) {
                        sums[value] = fmaf(own[i].number(column), own[j].number(column), sums[value]);
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
        chunk<T, N>(sums, rows, tasks, stride, firsts[blockIdx.x], lengths[blockIdx.x]);
    });
    double* partial = partials + uint64_t(blockIdx.x) * tasks * tasks;
    for (int cell = threadIdx.x; cell < T * T; cell += kThreads) {
        int i = cell / T, j = cell % T;
        if (i <= j && j < tasks) {
            partial[i * tasks + j] = over_warps<N>(sums, i * T - i * (i - 1) / 2 + (j - i));
        }
    }
}

// Rows of a group, rows of either side that a thread multiplies, and columns in shared memory at a time.
constexpr int kGroup = 32;
constexpr int kSide = 8;
constexpr int kColumns = 64;
// Threads that multiply all rows of a column, and columns that are multiplied at once.
constexpr int kTeam = (kGroup / kSide) * (kGroup / kSide);
constexpr int kTeams = kThreads / kTeam;
// Neighbouring rows that a thread loads of a column, and how often it does so for both groups.
constexpr int kRows = 4;
constexpr int kLoads = 2 * kGroup / kRows * kColumns / kThreads;

// Two groups of rows, column by column; the pitch spreads 16-byte accesses of neighbouring columns over the banks.
struct Tile {
    alignas(16) float at[2][kColumns][kGroup + kRows];
};

// What a thread loads of a tile while the one before is multiplied: some neighbouring rows of one column of either group, twice. Rows
// that are not there are the last again, whose products nobody reads; columns that are not there count as zero.
template <typename E>
struct Loaded {
    Pack<float, kRows> values[kLoads];
    const E* from[kLoads];
    int last[kLoads];

    // Columns from `column` on of the group `left` and of `right`.
    __device__ __forceinline__ Loaded(const E* left, const E* right, int left_rows, int right_rows, uint64_t stride, uint64_t column) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            int count = i < kLoads / 2 ? left_rows : right_rows, first = min(row(i), count - 1);
            from[i] = (i < kLoads / 2 ? left : right) + first * stride + column + threadIdx.x % kColumns;
            last[i] = count - 1 - first;
        }
    }

    // Goes on to the next tile; `left` columns are there. The right group only where there are `both`.
    __device__ __forceinline__ void load(uint64_t stride, int64_t left, bool both) {
        bool is_there = int(threadIdx.x % kColumns) < left;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            if (i < kLoads / 2 || both) {
                const E* at = from[i];
#pragma unroll
                for (int k = 0; k < kRows; ++k) {
                    values[i].at[k] = is_there ? to_float(*at) : 0.0f;
                    at += k < last[i] ? stride : 0;
                }
                from[i] += kColumns;
            }
        }
    }

    __device__ __forceinline__ void store(Tile& tile, bool both) const {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            if (i < kLoads / 2 || both) {
                store_pack(&tile.at[i / (kLoads / 2)][threadIdx.x % kColumns][row(i)], values[i]);
            }
        }
    }

   private:
    // The first row, of its group, of what is loaded i-th.
    __device__ __forceinline__ static int row(int i) {
        return (i % (kLoads / 2) * (kThreads / kColumns) + int(threadIdx.x) / kColumns) * kRows;
    }
};

// sums (kGroup x kGroup) of all products of the rows of two groups over a chunk.
template <typename E>
__device__ __forceinline__ void multiply_groups(double (&sums)[kGroup][kGroup], Tile& tile, const E* left, const E* right, int left_rows,
                                                int right_rows, uint64_t stride, uint64_t first, uint64_t length) {
    constexpr int N = kSide * kSide;
    int team = int(threadIdx.x) / kTeam, member = int(threadIdx.x) % kTeam;
    int i0 = member / (kGroup / kSide) * kSide, j0 = member % (kGroup / kSide) * kSide;
    bool both = left != right, upper = (team & 1) != 0;
    uint64_t end = first + length;
    // Of rows i0 and the next three, or the last four of its eight.
    double totals[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        totals[i] = 0.0;
    }
    Loaded<E> loaded(left, right, left_rows, right_rows, stride, first);
    loaded.load(stride, int64_t(length), both);
    for (uint64_t batch = first; batch < end; batch += kFold * kTeams) {
        float products[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            products[i] = 0.0f;
        }
        for (uint64_t column = batch; column < batch + kFold * kTeams && column < end; column += kColumns) {
            __syncthreads();
            loaded.store(tile, both);
            __syncthreads();
            loaded.load(stride, int64_t(end - column) - kColumns, both);
#pragma unroll
            for (int k = 0; k < kColumns / kTeams; ++k) {
                Pack<float, 4> a[2], b[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    a[half] = load_pack<Pack<float, 4>>(&tile.at[0][team + k * kTeams][i0 + 4 * half]);
                    b[half] = load_pack<Pack<float, 4>>(&tile.at[both][team + k * kTeams][j0 + 4 * half]);
                }
#pragma unroll
                for (int i = 0; i < kSide; ++i) {
#pragma unroll
                    for (int j = 0; j < kSide; ++j) {
                        products[i * kSide + j] = fmaf(a[i / 4].at[i % 4], b[j / 4].at[j % 4], products[i * kSide + j]);
                    }
                }
            }
        }
        // The warp's two teams add theirs and keep a half each.
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            float sent = upper ? products[i] : products[i + N / 2], kept = upper ? products[i + N / 2] : products[i];
            totals[i] += double(kept + __shfl_xor_sync(kAll, sent, kTeam));
        }
    }
    for (int warp = 0; warp < kWarps; ++warp) {
        if (warp == warp_id()) {
#pragma unroll
            for (int i = 0; i < N / 2; ++i) {
                double& sum = sums[i0 + (upper ? 4 : 0) + i / kSide][j0 + i % kSide];
                sum = warp == 0 ? totals[i] : sum + totals[i];
            }
        }
        __syncthreads();
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

// Any number of tasks; grid: (pairs (a <= b) of groups of 32 rows, chunks).
extern "C" __global__ void __launch_bounds__(256, 1) gram_tile(double* partials, const void* jacobian, uint64_t stride, int tasks,
                                                            const uint64_t* firsts, const uint32_t* lengths, int narrow) {
    using namespace gram;
    __shared__ double sums[kGroup][kGroup];
    __shared__ Tile tile;
    int groups = (tasks + kGroup - 1) / kGroup;
    int a = 0, b = int(blockIdx.x);
    while (b >= groups - a) {
        b -= groups - a;
        ++a;
    }
    b += a;
    int i0 = a * kGroup, j0 = b * kGroup;
    with_rows(jacobian, narrow, [&](auto rows) {
        multiply_groups(sums, tile, rows + i0 * stride, rows + j0 * stride, tasks - i0, tasks - j0, stride, firsts[blockIdx.y],
                        lengths[blockIdx.y]);
    });
    double* partial = partials + uint64_t(blockIdx.y) * tasks * tasks;
    for (int cell = threadIdx.x; cell < kGroup * kGroup; cell += kThreads) {
        int i = i0 + cell / kGroup, j = j0 + cell % kGroup;
        if (i <= j && j < tasks) {
            partial[uint64_t(i) * tasks + j] = sums[cell / kGroup][cell % kGroup];
        }
    }
}

// gram (matrices x tasks x tasks), symmetric: matrix r adds partials bounds[r].x..bounds[r].y. A warp a cell, whose lanes take every 32nd.
// grid: (cells by warps, matrices).
extern "C" __global__ void __launch_bounds__(256) gram_finish(double* gram, const double* partials, const uint2* bounds, int tasks) {
    uint64_t cells = uint64_t(tasks) * tasks, cell = uint64_t(blockIdx.x) * gram::kWarps + warp_id();
    uint64_t i = cell / tasks, j = cell % tasks;
    if (cell >= cells || i > j) {
        return;
    }
    uint2 own = bounds[blockIdx.y];
    double sum = 0.0;
    for (uint32_t partial = own.x + lane_id(); partial < own.y; partial += kWarp) {
        sum += partials[partial * cells + cell];
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) {
        gram += blockIdx.y * cells;
        gram[cell] = sum;
        gram[j * tasks + i] = sum;
    }
}
