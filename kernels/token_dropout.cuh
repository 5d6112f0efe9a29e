// Masks of tokens: words are numbered by position in the sequence and column, as ops/token_dropout.rs.
#pragma once

#include "vectors.cuh"

struct TokenDropout {
    // (tokens x 3) task, example and position; null where nothing is dropped.
    const uint32_t* keys;
    // Words below it drop.
    uint32_t threshold;
    float scale;
    // Of the place in the network.
    uint64_t seed;
    uint32_t round;
};

// A token's values become value * mask * scale, vector by vector.
struct TokenMask {
    TokenDropout dropout;
    uint32_t task;
    uint32_t example;
    // Number of the first block of four words.
    uint32_t first;

    __device__ __forceinline__ TokenMask(const TokenDropout& own, uint64_t token, int width) : dropout(own) {
        const uint32_t* key = own.keys + 3 * token;
        task = key[0];
        example = key[1];
        first = key[2] * uint32_t(width / 4);
    }

    __device__ __forceinline__ void apply(Floats& values, int vector) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Words words = keyed_block(dropout.seed, kStreamTokenDropout, dropout.round, task, example, first + 2 * vector + half);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& value = values.at[4 * half + i];
                value = words.at[i] < dropout.threshold ? 0.0f : value * dropout.scale;
            }
        }
    }
};
