// What the products of gemm.cu are made of: the ring of operands, the order of tiles, and what is done with the sums.
#pragma once

#include "../activation.cuh"
#include "../mma.cuh"
#include "hopper.cuh"

namespace hopper {

constexpr int kRows = 128;
constexpr int kInner = 64;
constexpr int kThreads = 384;

// Registers of a thread that starts copies, and of one that multiplies: a multiprocessor has 504 for three threads.
constexpr int kRegistersCopying = 40;
constexpr int kRegistersMultiplying = 232;

// 64 rows of 128 bytes: the inner positions of a stage, or half of a tile's rows.
constexpr int kHalfBytes = 64 * 128;
// Part of a tile as it is stored: 128 rows of 128 bytes.
constexpr int kPieceBytes = 2 * kHalfBytes;

// A ring of stages, two pieces for each warpgroup that multiplies, and the barriers. `kRowsA`: the inner dimension runs down the
// rows of the first operand as it is stored, and likewise kRowsB.
template <int kWide, bool kRowsA, bool kRowsB, int kBlocks>
struct Ring {
    static constexpr int kBytesA = kRows * kInner * 2;
    static constexpr int kBytesB = kWide * kInner * 2;
    static constexpr int kStage = kBytesA + kBytesB;
    static constexpr int kStages = 163840 / kStage;
    // Where the biases of both warpgroups lie, from the pieces on: behind the barriers.
    static constexpr int kBiases = 4 * kPieceBytes + 8 * (2 * kStages + 2);

    Shared stages;
    // Where this thread is in the ring: the stage, the parity of its phase, and the stage that its last products still read.
    int stage = 0;
    uint32_t phase = 0;
    int last = 0;
    // That this warpgroup has begun.
    int tiles = 0;

    __device__ __forceinline__ Ring() {
        extern __shared__ __align__(1024) unsigned char taskloom_ring[];
        stages = (shared_address(taskloom_ring) + 1023u) & ~1023u;
        if (threadIdx.x == 0) {
            for (int stage = 0; stage < kStages; ++stage) {
                barrier_init(full(stage), 1);
                barrier_init(empty(stage), kBlocks);
            }
            barrier_init(turn(1), 4);
            barrier_init(turn(2), 4);
            barrier_init_fence();
        }
        leave();
    }

    __device__ __forceinline__ Shared pieces() const { return stages + kStages * kStage; }
    __device__ __forceinline__ Shared full(int stage) const { return pieces() + 4 * kPieceBytes + 8 * stage; }
    __device__ __forceinline__ Shared empty(int stage) const { return full(kStages + stage); }
    __device__ __forceinline__ Shared turn(int group) const { return full(2 * kStages + group - 1); }

    // All threads of the cluster have come here. At the end, nobody may leave while the other block's copies and arrivals come.
    __device__ __forceinline__ static void leave() {
        if (kBlocks > 1) {
            __syncwarp();
            cluster_arrive();
            cluster_wait();
        } else {
            __syncthreads();
        }
    }

    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            phase ^= 1;
        }
    }

    // Past the stages of a tile that the other warpgroup has.
    __device__ __forceinline__ void skip(int steps) {
        int at = stage + steps;
        phase ^= at / kStages & 1;
        stage = at % kStages;
    }

    // Until the other warpgroup has begun its last products of the tile before. A barrier knows the parity of a phase only, so who
    // came early would take an old phase for its own.
    __device__ __forceinline__ void wait_for_turn(int group) {
        if (group == 2 || tiles > 0) {
            barrier_wait(turn(group), (tiles + group) & 1);
        }
        ++tiles;
    }

    // By every warp, so that none is left behind a whole round of turns.
    __device__ __forceinline__ void pass_turn(int group) const {
        __syncwarp();
        if (lane_id() == 0) {
            barrier_arrive(turn(3 - group));
        }
    }

    // Starts the copies of the next stage once it is free: A's tile at `row`, B's at `column`, from inner position `inner` on.
    __device__ __forceinline__ void fill(const TensorMap* a, const TensorMap* b, int row, int column, int inner, uint32_t rank) {
        barrier_wait(empty(stage), phase ^ 1);
        Shared own = stages + stage * kStage, barrier = full(stage);
        barrier_expect(barrier, kStage);
        if (kRowsA) {
            load_box(own, a, inner, row, barrier);
            load_box(own + kHalfBytes, a, inner, row + 64, barrier);
        } else {
            load_box(own, a, row, inner, barrier);
        }
        own += kBytesA;
        if (kBlocks == 1) {
            if (kRowsB) {
                for (int part = 0; part < kWide / 64; ++part) {
                    load_box(own + part * kHalfBytes, b, inner, column + 64 * part, barrier);
                }
            } else {
                load_box(own, b, column, inner, barrier);
            }
        } else if (kRowsB) {
            int half = int(rank) * (kInner / 2);
            for (int part = 0; part < kWide / 64; ++part) {
                load_box_for_all(own + part * kHalfBytes + half * 128, b, inner + half, column + 64 * part, barrier, 3);
            }
        } else {
            int half = int(rank) * (kWide / 2);
            load_box_for_all(own + half * 128, b, column + half, inner, barrier, 3);
        }
        advance();
    }

    // sums += the products of the next stage, of which `valid` inner positions count; `first` of a tile.
    __device__ __forceinline__ void multiply(float (&sums)[2][kWide / 8][4], int valid, bool first) {
        multiply(sums, valid, first, [](int, uint64_t) {});
    }

    // also(half, operand) is begun with the products of each half of the first operand's rows and 16 inner positions.
    template <typename Also>
    __device__ __forceinline__ void multiply(float (&sums)[2][kWide / 8][4], int valid, bool first, Also also) {
        barrier_wait(full(stage), phase);
        if (kRowsA && valid < kInner) {
            cut(valid);
        }
        Shared own = stages + stage * kStage;
        uint64_t a = operand(own, 0), b = operand(own + kBytesA, kRowsB ? kHalfBytes : 0);
        product_fence();
#pragma unroll
        for (int k = 0; k < kInner / 16; ++k) {
            // 16 inner positions: 16 rows of 128 bytes, or 32 bytes of a row; in units of 16 bytes.
            int in_a = k * (kRowsA ? 128 : 2), in_b = k * (kRowsB ? 128 : 2);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint64_t rows = a + in_a + half * (kHalfBytes / 16);
                Product<kWide, kRowsA, kRowsB>::add(sums[half], rows, b + in_b);
                also(half, rows);
            }
        }
        product_commit();
        product_wait<1>();
        if (!first) {
            release();
        }
        last = stage;
        advance();
    }

    // The sums of a tile are there.
    __device__ __forceinline__ void finish() {
        product_wait<0>();
        release();
    }

    // The stage of the products before may be filled again, in every block that it is filled for.
    __device__ __forceinline__ void release() const {
        if (threadIdx.x % 128 != 0) {
            return;
        }
        if (kBlocks == 1) {
            barrier_arrive(empty(last));
        } else {
            for (int rank = 0; rank < kBlocks; ++rank) {
                barrier_arrive_at(empty(last), rank);
            }
        }
    }

    // Zeros in place of what the stage holds from inner position `valid` on: rows of the next segment count for nothing,
    // whatever they are.
    __device__ __forceinline__ void cut(int valid) const {
        Shared own = stages + stage * kStage;
        for (int at = valid * 128 + int(threadIdx.x) % 128 * 16; at < kHalfBytes; at += 128 * 16) {
            for (int part = 0; part < kStage / kHalfBytes; ++part) {
                store_16(own + part * kHalfBytes + at, make_uint4(0, 0, 0, 0));
            }
        }
        proxy_fence();
        named_barrier(int(threadIdx.x) / 128, 128);
    }
};

// Tiles of this block in the order of their computation. Blocks of a cluster have neighbouring rows of the same columns; within a
// panel of columns, blocks that run at the same time share their rows.
template <int kBlocks>
struct Tiles {
    static constexpr int kPanel = 16;
    int down, across, wide, segments;
    uint32_t rank;

    __device__ __forceinline__ Tiles(int m, int n, int wide, int segments)
        : down((m + kBlocks * kRows - 1) / (kBlocks * kRows)),
          across((n + wide - 1) / wide),
          wide(wide),
          segments(segments),
          rank(kBlocks > 1 ? cluster_rank() : 0) {}

    // body(segment, first row, first column)
    template <typename Body>
    __device__ __forceinline__ void each(Body body) const {
        int tiles = down * across;
        for (int number = int(blockIdx.x) / kBlocks; number < segments * tiles; number += int(gridDim.x) / kBlocks) {
            int segment = segments > 1 ? number / tiles : 0, own = number - segment * tiles;
            int panel = own / (kPanel * down), columns = min(kPanel, across - panel * kPanel);
            int rest = own - panel * kPanel * down, row = rest / columns;
            int column = panel * kPanel + rest - row * columns;
            body(segment, (row * kBlocks + int(rank)) * kRows, column * wide);
        }
    }
};

// Zeros at the beginning of a tile: without, the compiler takes the sums to be in use between tiles too, and has no registers left
// for what is done with them.
template <int kGroups>
__device__ __forceinline__ void clear(float (&sums)[2][kGroups][4]) {
#pragma unroll
    for (int at = 0; at < 8 * kGroups; ++at) {
        sums[at / (4 * kGroups)][at / 4 % kGroups][at % 4] = 0.0f;
    }
}

// Which warpgroup this is, in a way that the compiler knows to be the same for all of a warp.
__device__ __forceinline__ int warpgroup() { return __shfl_sync(kAll, int(threadIdx.x) / 128, 0); }

// Phi(x): 2 to a polynomial that is within 2.7e-5 of Phi(-y), relatively, for y up to 5.5, where Phi is as good as 0 for a bf16.
// One special function and no division; the exact polynomials of activation.cuh would take longer than the product. Step by step
// for all eight: with one chain after the other a warp would mostly wait for itself.
__device__ __forceinline__ void fast_normal_cdf(float (&cdf)[8], const float (&x)[8]) {
    constexpr float kTerms[] = {-6.6373113e-4f, 7.5074360e-3f, -5.2033272e-2f, -4.6023256e-1f, -1.1506422f, -1.0000296f};
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        y[i] = fminf(fabsf(x[i]), 5.5f);
        cdf[i] = 2.6304731e-5f;
    }
#pragma unroll
    for (int term = 0; term < 6; ++term) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            cdf[i] = fmaf(cdf[i], y[i], kTerms[term]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        cdf[i] = fast_exp2(cdf[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        cdf[i] = x[i] < 0.0f ? cdf[i] : 1.0f - cdf[i];
    }
}

// x = f(x)
__device__ __forceinline__ void fast_activate(float (&x)[8], int activation) {
    if (activation == kGelu) {
        float cdf[8];
        fast_normal_cdf(cdf, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            x[i] *= cdf[i];
        }
    } else if (activation == kRelu) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            x[i] = fmaxf(x[i], 0.0f);
        }
    } else if (activation == kTanh) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            x[i] = tanh_poly(x[i]);
        }
    }
}

// x = x f'(at)
__device__ __forceinline__ void fast_slope(float (&x)[8], const float (&at)[8], int activation) {
    if (activation == kGelu) {
        float cdf[8];
        fast_normal_cdf(cdf, at);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float pdf = 0.3989423f * fast_exp2(at[i] * at[i] * -0.72134752f);
            x[i] *= fmaf(at[i], pdf, cdf[i]);
        }
    } else if (activation == kRelu) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            x[i] = at[i] > 0.0f ? x[i] : 0.0f;
        }
    } else if (activation == kTanh) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            // 1 - tanh^2 = 4 e / (1 + e)^2 with e = exp(-2 |at|), and e does not overflow.
            float e = fast_exp2(fabsf(at[i]) * -2.8853901f), half = fast_reciprocal(1.0f + e);
            x[i] *= 4.0f * e * half * half;
        }
    }
}

// What is done with sums, and where they go: out (m x n) and argument in bf16, rows of `pitch`, of which `argument` receives what the
// activation is applied to; or wide in f32. Those that are not wanted are null.
struct Finish {
    bf16* out;
    bf16* argument;
    float* wide;
    const float* bias;
    const bf16* residual;
    int residual_columns, residual_pitch;
    // The argument of the activation whose slope the sums are multiplied by.
    const bf16* slope_at;
    int activation;
    int m, n, pitch;
};

// Adds what the residual has at (r, c) and the columns after.
template <int kCount>
__device__ __forceinline__ void add_residual(float (&x)[kCount], const Finish& finish, int r, int c) {
    if (!finish.residual || c >= finish.residual_columns) {
        return;
    }
    Pack<bf16, kCount> own = load_pack<Pack<bf16, kCount>>(finish.residual + uint64_t(r) * finish.residual_pitch + c);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        x[i] += c + i < finish.residual_columns ? to_float(own.at[i]) : 0.0f;
    }
}

__device__ __forceinline__ void finish_wide(float (&x)[4], const Finish& finish, int r, int c) {
    add_residual(x, finish, r, c);
    store_pack(finish.wide + uint64_t(r) * finish.pitch + c, Pack<float, 4>{{x[0], x[1], x[2], x[3]}});
}

// Eight bf16 as numbers.
__device__ __forceinline__ void widen(float (&x)[8], uint4 packed) {
    uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        x[i] = bits_of<float>(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u);
    }
}

// Eight neighbouring outputs in row r from column c on; `argument` of the activation's slope there. An activation is for its slope
// only where `kSlopes`.
template <bool kSlopes>
__device__ __forceinline__ void finish_narrow(float (&x)[8], const Finish& finish, uint4 argument, int r, int c) {
    if (!kSlopes) {
        fast_activate(x, finish.activation);
    }
    add_residual(x, finish, r, c);
    if (!kSlopes || !finish.slope_at) {
        return;
    }
    float at[8];
    widen(at, argument);
    fast_slope(x, at, finish.activation);
    if (c + 8 > finish.n) {
        // Columns beyond the matrix may hold anything.
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            x[i] = c + i < finish.n ? x[i] : 0.0f;
        }
    }
}

// Takes a warpgroup's sums (128 x kWide) to where they belong, by way of pieces in shared memory under the 128-byte swizzle.
template <int kWide, typename Ring>
struct Output {
    Shared shared;
    int barrier;

    __device__ __forceinline__ Output(const Ring& ring, int group) : shared(ring.pieces()), barrier(group) {}

    // (kWide) f32, of the tile's columns.
    __device__ __forceinline__ Shared biases() const { return shared + Ring::kBiases + (barrier - 1) * kWide * 4; }

    __device__ __forceinline__ static int thread() { return int(threadIdx.x) % 128; }

    // Brings the biases of a tile, and what its first part has under an activation's slope, before its products; those of the tile
    // before are in use no more.
    __device__ __forceinline__ void begin(const Finish& finish, int row, int column) const {
        named_barrier(barrier, 128);
        for (int at = thread(); at < kWide; at += 128) {
            store_4(biases() + 4 * at, finish.bias && column + at < finish.n ? finish.bias[column + at] : 0.0f);
        }
        for (int at = thread(); finish.slope_at && at < kPieceBytes / 16; at += 128) {
            bring_argument(finish, at, row, column);
        }
        named_barrier(barrier, 128);
    }

    // Where the second of two pieces holds the arguments of slopes: each thread brings those that it needs itself, a part ahead.
    __device__ __forceinline__ Shared argument(int at) const { return piece(1) + 16 * at; }

    // Starts bringing 16 bytes of a part of which `column` is the first.
    __device__ __forceinline__ void bring_argument(const Finish& finish, int at, int row, int column) const {
        int r = row + at / 8, c = column + at % 8 * 8;
        if (r < finish.m && c < finish.pitch) {
            bring_16(argument(at), finish.slope_at + uint64_t(r) * finish.pitch + c);
        }
        copy_async_commit();
    }

    // Where the 16 bytes of this number lie in row r of a piece; those that differ by a power of two lie where that bit differs.
    __device__ __forceinline__ static int place(int r, int sixteenth) { return r * 128 + ((sixteenth ^ (r & 7)) << 4); }

    // Where a part of the tile is laid out. Before the barrier that follows everyone has read the part before the last, and before
    // those of begin() all of them.
    __device__ __forceinline__ Shared piece(int part) const { return shared + (2 * barrier - 2 + part % 2) * kPieceBytes; }

    template <bool kSlopes>
    __device__ __forceinline__ void narrow(const float (&sums)[2][kWide / 8][4], const Finish& finish, int row, int column) {
        bool sloped = kSlopes && finish.slope_at;
        bool plain = finish.activation == kNone && !finish.residual && !sloped;
        // The row of a matrix that this lane says the address of, and which of two neighbouring columns of matrices.
        int own = 16 * (thread() / kWarp) + lane_id() % 16, odd = lane_id() / 16;
#pragma unroll
        for (int part = 0; part < kWide / 64; ++part) {
            int first = column + 64 * part;
            if (first >= finish.pitch) {
                break;
            }
            Shared raw = piece(sloped ? 0 : part), at = raw + place(own, odd);
            if (sloped && part > 0) {
                named_barrier(barrier, 128);
            }
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float bias[4];
                load_8(bias[0], bias[1], biases() + 4 * (64 * part + 8 * j + 2 * (lane_id() % 4)));
                load_8(bias[2], bias[3], biases() + 4 * (64 * part + 8 * j + 8 + 2 * (lane_id() % 4)));
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float(&left)[4] = sums[half][8 * part + j];
                    const float(&right)[4] = sums[half][8 * part + j + 1];
                    store_matrices((at ^ j << 4) + half * kHalfBytes, pair_of(left[0] + bias[0], left[1] + bias[1]),
                                   pair_of(left[2] + bias[0], left[3] + bias[1]), pair_of(right[0] + bias[2], right[1] + bias[3]),
                                   pair_of(right[2] + bias[2], right[3] + bias[3]));
                }
            }
            named_barrier(barrier, 128);
            if (plain) {
#pragma unroll
                for (int at = thread(); at < kPieceBytes / 16; at += 128) {
                    int r = at / 8, c = first + at % 8 * 8;
                    if (row + r < finish.m && c < finish.pitch) {
                        *reinterpret_cast<uint4*>(finish.out + uint64_t(row + r) * finish.pitch + c) = load_16(raw + place(r, at % 8));
                    }
                }
                continue;
            }
#pragma unroll kSlopes ? 2 : 1
            for (int at = thread(); at < kPieceBytes / 16; at += 128) {
                int r = at / 8, c = first + at % 8 * 8;
                bool inside = row + r < finish.m && c < finish.pitch;
                uint4 argument{};
                if (sloped) {
                    copy_async_wait<kPieceBytes / 16 / 128 - 1>();
                    if (inside) {
                        argument = load_16(this->argument(at));
                    }
                    if (part + 1 < kWide / 64) {
                        bring_argument(finish, at, row, first + 64);
                    } else {
                        copy_async_commit();
                    }
                }
                if (!inside) {
                    continue;
                }
                uint4 packed = load_16(raw + place(r, at % 8));
                uint64_t to = uint64_t(row + r) * finish.pitch + c;
                if (finish.argument) {
                    *reinterpret_cast<uint4*>(finish.argument + to) = packed;
                }
                float x[8];
                widen(x, packed);
                finish_narrow<kSlopes>(x, finish, argument, row + r, c);
                *reinterpret_cast<uint4*>(finish.out + to) =
                    make_uint4(pair_of(x[0], x[1]), pair_of(x[2], x[3]), pair_of(x[4], x[5]), pair_of(x[6], x[7]));
            }
        }
    }

    // store(sums, row, column) for every four neighbouring sums within (m x n).
    template <typename Body>
    __device__ __forceinline__ void wide(const float (&sums)[2][kWide / 8][4], int row, int column, int m, int n, bool biased,
                                         Body store) {
        int own = 16 * (thread() / kWarp) + lane_id() / 4, pair = lane_id() % 4;
        // A narrow tile before may have ended with the first piece.
        named_barrier(barrier, 128);
#pragma unroll
        for (int part = 0; part < kWide / 32; ++part) {
            int first = column + 32 * part;
            if (first >= n) {
                break;
            }
            Shared raw = piece(part), at = raw + place(own, pair / 2) + pair % 2 * 8;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const float(&four)[4] = sums[half][4 * part + j];
                    Shared to = (at ^ 2 * j << 4) + half * kHalfBytes;
                    store_8(to, four[0], four[1]);
                    // Eight rows further, the swizzle is the same.
                    store_8(to + 8 * 128, four[2], four[3]);
                }
            }
            named_barrier(barrier, 128);
#pragma unroll 4
            for (int at = thread(); at < kPieceBytes / 16; at += 128) {
                int r = at / 8, c = first + at % 8 * 4;
                if (row + r < m && c < n) {
                    uint4 four = load_16(raw + place(r, at % 8));
                    float x[4] = {bits_of<float>(four.x), bits_of<float>(four.y), bits_of<float>(four.z), bits_of<float>(four.w)};
                    if (biased) {
                        uint4 own = load_16(biases() + 4 * (c - column));
                        x[0] += bits_of<float>(own.x);
                        x[1] += bits_of<float>(own.y);
                        x[2] += bits_of<float>(own.z);
                        x[3] += bits_of<float>(own.w);
                    }
                    store(x, row + r, c);
                }
            }
        }
    }
};

}  // namespace hopper
