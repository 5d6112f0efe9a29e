// Dropout inside the transformer, in place: a warp a row, 16 bytes a lane. Floor: 4 bytes a value; the masks cost one Philox
// block (about 70 integer operations) for 4 values.
#include "token_dropout.cuh"

// x (rows x width) becomes x * mask * scale; keys (rows x 3): task, example, position; words below `threshold` drop; round: one
// number. grid: rows / 8 rounded up.
extern "C" __global__ void __launch_bounds__(256) dropout_by_token(bf16* x, int rows, int width, const uint32_t* keys,
                                                                   uint32_t threshold, float scale, uint64_t seed,
                                                                   const uint64_t* round) {
    int row = int(blockIdx.x) * (256 / kWarp) + warp_id();
    if (row >= rows) {
        return;
    }
    TokenMask mask(TokenDropout{keys, threshold, scale, seed, uint32_t(*round)}, row, width);
    bf16* own = x + uint64_t(row) * width;
    each_vector<3>(width, [&](int at) { return load_raw(own + at); }, [&](int at, const Raw& raw) {
        Floats values = widen(raw);
        mask.apply(values, at / kEight);
        store_raw(own + at, narrowed(values));
    });
}
