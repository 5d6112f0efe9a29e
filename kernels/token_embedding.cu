// The transformer's input, word + position + type, and the gradients of the position and type rows.
//
// Forward: a warp a token, 16 bytes a lane and access. Floor: 4 bytes a value of the word rows, 2 written; positions and types come
// from the caches. Backward: a block a row of the gradient and 256 columns, the rows' tokens sorted by the host; a type has so many
// tokens that `add_partials` adds it up. Floor: 4 bytes a value, since every token is read by its position and by its type.
#include "jacobian.cuh"
#include "row_init.cuh"
#include "row_sums.cuh"

// out (tokens x dim) = word row + position row + type row. slots say where each token's word lies in values (slots x dim), or
// kUntouchedRow, where words has its number unless deviation is 0. grid: tokens / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) token_embedding_forward(bf16* out, const uint32_t* words, const uint32_t* slots,
                                                                          const uint32_t* positions, const uint32_t* types,
                                                                          const float* values, const float* position_rows,
                                                                          const float* type_rows, int tokens, int dim,
                                                                          uint64_t seed, double deviation) {
    struct Rows {
        Floats word;
        Floats position;
        Floats type;
    };
    int token = int(blockIdx.x) * 8 + warp_id();
    if (token >= tokens) {
        return;
    }
    uint32_t slot = slots[token];
    const float* position = position_rows + uint64_t(positions[token]) * dim;
    const float* type = type_rows + uint64_t(types[token]) * dim;
    bf16* own = out + uint64_t(token) * dim;
    if (slot == kUntouchedRow) {
        for (int column = lane_id(); column < dim; column += kWarp) {
            float word = deviation == 0.0 ? 0.0f : initial_value(seed, deviation, words[token], column);
            own[column] = from_float<bf16>((word + position[column]) + type[column]);
        }
        return;
    }
    const float* word = values + uint64_t(slot) * dim;
    auto load = [&](int at) { return Rows{load_floats(word + at), load_floats(position + at), load_floats(type + at)}; };
    each_vector<2>(dim, load, [&](int at, const Rows& rows) {
        Floats sum;
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
            sum.at[j] = (rows.word.at[j] + rows.position.at[j]) + rows.type.at[j];
        }
        store_raw(own + at, narrowed(sum));
    });
}

// Tokens sources[first]..sources[last] are added up, and where they go the sum is added or not.
struct TokenSum {
    uint32_t first;
    uint32_t last;
    uint64_t at;
    uint64_t add;
};

// rows[sums[i].at..] (dim; f32, or bf16 if narrow) = or += the sum of sum i's rows of dsum (tokens x dim). grid: (sums, tiles of 256
// columns).
extern "C" __global__ void __launch_bounds__(256) token_embedding_sums(void* rows, const bf16* dsum, const uint32_t* sources,
                                                                       const TokenSum* sums, int dim, int narrow) {
    __shared__ SumRoom room;
    TokenSum own = sums[blockIdx.x];
    auto row_of = [&](uint32_t i) { return sources[i]; };
    float sum = column_of_sum(dsum, dim, own.first, own.last, row_of, [](uint32_t) { return 1.0f; }, room);
    int column = int(blockIdx.y) * kSumTile + int(threadIdx.x);
    if (column < dim) {
        JacobianRow(rows, narrow, own.at, own.add != 0).put(column, sum);
    }
}
