// The transformer's input, word + position + type, and the gradients of the position and type rows.
//
// Forward: a warp a token, 16 bytes a lane and access. Floor: 4 bytes a value of the word rows, 2 written; positions and types come
// from the caches. Backward: a block a row of the gradient and 256 columns, which finds the row's tokens by the bounds of the sequences; a
// type has so many tokens that `add_partials` adds it up. Floor: 4 bytes a value, since every token is read by its position and by its type.
#include "jacobian.cuh"
#include "row_init.cuh"
#include "row_sums.cuh"

// out (tokens x dim) = word row + position row + type row. slots say where each token's word, or where they are those `of_words` each word
// of the table, lies in values (slots x dim), or kUntouchedRow, where words has its number unless deviation is 0. grid: tokens / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) token_embedding_forward(bf16* out, const uint32_t* words, const uint32_t* slots,
                                                                          const uint32_t* positions, const uint32_t* types,
                                                                          const float* values, const float* position_rows,
                                                                          const float* type_rows, int tokens, int dim,
                                                                          uint64_t seed, double deviation, int of_words) {
    struct Rows {
        Floats word;
        Floats position;
        Floats type;
    };
    int token = int(blockIdx.x) * 8 + warp_id();
    if (token >= tokens) {
        return;
    }
    uint32_t slot = slots[of_words ? words[token] : token];
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

// Sequences and tokens whose gradients go to one row of J, as `SegmentSums` of ops/token_embedding.rs.
struct SegmentSums {
    uint32_t first_sequence;
    uint32_t last_sequence;
    uint32_t first_token;
    uint32_t last_token;
    // Chunks of kChunk tokens of the segments before.
    uint32_t chunks;
    // Whether its sums are added to what is there.
    uint32_t add;
    // Where its position rows begin.
    uint64_t at;
};

namespace token_embedding {

constexpr uint32_t kChunk = 64;

}  // namespace token_embedding

// Position rows of each segment's row of J (f32, or bf16 if narrow) = or += the sums over its sequences of dsum (tokens x dim) at each
// position. bounds (sequences + 1). grid: (segments x positions, tiles of 256 columns).
extern "C" __global__ void __launch_bounds__(256) position_sums(void* rows, const bf16* dsum, const uint32_t* bounds,
                                                                const SegmentSums* segments, int positions, int dim, int narrow) {
    __shared__ SumRoom room;
    SegmentSums own = segments[blockIdx.x / positions];
    uint32_t position = blockIdx.x % positions;
    auto row_of = [&](uint32_t i) { return bounds[i] + position; };
    auto factor_of = [&](uint32_t i) { return row_of(i) < bounds[i + 1] ? 1.0f : 0.0f; };
    float sum = column_of_sum(dsum, dim, own.first_sequence, own.last_sequence, row_of, factor_of, room);
    int column = int(blockIdx.y) * kSumTile + int(threadIdx.x);
    if (column < dim) {
        JacobianRow(rows, narrow, own.at + uint64_t(position) * dim, own.add != 0).put(column, sum);
    }
}

// partials (dim each) = the sums of dsum over the tokens of one type in each chunk of kChunk tokens of a segment: by segment, type and
// chunk. types (tokens). grid: (chunks, tiles of 256 columns, types); there may be fewer chunks.
extern "C" __global__ void __launch_bounds__(256) type_sums(float* partials, const bf16* dsum, const uint32_t* types,
                                                            const SegmentSums* segments, int count, int dim) {
    using token_embedding::kChunk;
    __shared__ SumRoom room;
    int segment = 0;
    while (segment + 1 < count && blockIdx.x >= segments[segment + 1].chunks) {
        ++segment;
    }
    SegmentSums own = segments[segment];
    uint32_t chunk = blockIdx.x - own.chunks, first = own.first_token + chunk * kChunk;
    uint32_t chunks = (own.last_token - own.first_token + kChunk - 1) / kChunk;
    if (chunk >= chunks) {
        return;
    }
    auto row_of = [](uint32_t i) { return i; };
    auto factor_of = [&](uint32_t i) { return types[i] == blockIdx.z ? 1.0f : 0.0f; };
    float sum = column_of_sum(dsum, dim, first, min(first + kChunk, own.last_token), row_of, factor_of, room);
    int column = int(blockIdx.y) * kSumTile + int(threadIdx.x);
    if (column < dim) {
        partials[(uint64_t(own.chunks) * gridDim.z + blockIdx.z * chunks + chunk) * dim + column] = sum;
    }
}
