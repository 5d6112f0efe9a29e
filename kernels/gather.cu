// Rows picked out of a matrix, and added back: a warp a row, 16 bytes a lane. No shared memory.
// Floors: gather 4 bytes a value, add 6.
#include "vectors.cuh"

namespace gather {

constexpr int kWarps = 8;

struct Two {
    Raw left;
    Raw right;
};

}  // namespace gather

// out (rows x width) = the rows index (rows) of x. grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) gather_rows(bf16* out, const bf16* x, const uint32_t* index, int rows, int width) {
    using namespace gather;
    int row = int(blockIdx.x) * kWarps + warp_id();
    if (row >= rows) {
        return;
    }
    const bf16* from = x + uint64_t(index[row]) * width;
    bf16* to = out + uint64_t(row) * width;
    each_vector<4>(width, [&](int at) { return load_raw(from + at); }, [&](int at, const Raw& raw) { store_raw(to + at, raw); });
}

// The rows index (rows, no two the same) of out gain the rows of x (rows x width).
// grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) add_rows(bf16* out, const bf16* x, const uint32_t* index, int rows, int width) {
    using namespace gather;
    int row = int(blockIdx.x) * kWarps + warp_id();
    if (row >= rows) {
        return;
    }
    const bf16* from = x + uint64_t(row) * width;
    bf16* to = out + uint64_t(index[row]) * width;
    auto load = [&](int at) { return Two{load_raw(to + at), load_raw(from + at)}; };
    each_vector<4>(width, load, [&](int at, const Two& both) {
        Floats sum = widen(both.left), other = widen(both.right);
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            sum.at[i] += other.at[i];
        }
        store_raw(to + at, narrowed(sum));
    });
}
