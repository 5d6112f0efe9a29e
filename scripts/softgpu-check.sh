#!/usr/bin/env bash
# The path of device = "cuda" without a card: the kernels' cases and short trainings on a library that plays the driver, executes
# the PTX of this build and checks every access. Skipped, and said to be, where scripts/softgpu.sh finds no sources of it.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(scripts/softgpu.sh)
if [[ -z "$folder" ]]; then
    echo "skipped: there is no ../shared/softgpu"
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# All at once: the cards are played side by side, and none waits for the other's build.
cargo test --quiet --release --no-run --lib --test schedule_properties --test emulated_transformer

train_from() {
    local config=$1 name=$2
    shift 2
    LD_LIBRARY_PATH="$folder" "${CARGO_TARGET_DIR:-target}/release/taskloom" train "$config" \
        --run-dir "$scratch/$name" --set run.device=cuda --set train.rounds=6 --set eval.every=3 "$@"
}

train() {
    train_from configs/emulated.toml "$@"
}

# What a card of a compute capability computes.
card() {
    export SOFTGPU_CC=$1
    LD_LIBRARY_PATH="$folder" TASKLOOM_REQUIRE_CUDA=1 cargo test --quiet --release --lib cuda::
    # Lanes of the device as the dispatcher's executor.
    LD_LIBRARY_PATH="$folder" TASKLOOM_REQUIRE_CUDA=1 cargo test --quiet --release --test schedule_properties lanes_of_the_host
    # A vocabulary's losses and what follows from them, in a transformer.
    LD_LIBRARY_PATH="$folder" TASKLOOM_REQUIRE_CUDA=1 cargo test --quiet --release --test emulated_transformer words_are_learned_on_a_card
    train "small-$SOFTGPU_CC"
    LD_LIBRARY_PATH="$folder" "${CARGO_TARGET_DIR:-target}/release/taskloom" doctor --device cuda
}

# The library runs on one core.
cards=()
for capability in 80 90; do
    card "$capability" >"$scratch/$capability.log" 2>&1 &
    cards+=("$capability $!")
done
for both in "${cards[@]}"; do
    read -r capability process <<<"$both"
    passed=0
    wait "$process" || passed=$?
    cat "$scratch/$capability.log"
    if ((passed != 0)); then
        echo "compute capability ${capability:0:1}.${capability:1} failed"
        exit "$passed"
    fi
done
export SOFTGPU_CC=90
# Rows of no even length.
train odd --set encoder.hidden=61 --set synthetic.features=13 --set train.micro_batch=7
# Embedding rows of no whole number of vectors.
awk 'BEGIN { print "text\tother\tlabel"; for (i = 0; i < 60; i++) print (i % 2 ? "red fast" : "dull slow") " word" i % 7 "\tslow word" i % 5 "\t" i % 2 }' \
    >"$scratch/rows.tsv"
cat >"$scratch/bag.toml" <<'TOML'
[encoder]
kind = "bag"
tokenizer = "words"
hidden = 64
embedding_dim = 13
residual = true
buckets = 64
[train]
rounds = 6
micro_batch = 7
[tasks.speed]
train = "rows.tsv"
dev = 0.2
text = "text"
label = "label"
[tasks.again]
train = "rows.tsv"
dev = 0.2
text = "text"
label = "label"
TOML
train_from "$scratch/bag.toml" bag --set "data.root=$scratch"
# Tokens that the device fetches, and the same from packed batches.
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' red dull fast slow word '##0' '##1' '##2' '##3' '##4' '##5' '##6' >"$scratch/vocab.txt"
cat >"$scratch/tokens.toml" <<'TOML'
[encoder]
kind = "transformer"
tokenizer = "vocab.txt"
hidden = 64
heads = 1
layers = 2
intermediate = 96
dropout = 0.1
attention_dropout = 0.1
[train]
rounds = 6
micro_batch = 5
[tasks.texts]
train = "rows.tsv"
dev = 0.2
text = "text"
label = "label"
[tasks.pairs]
train = "rows.tsv"
dev = 0.2
text = ["text", "other"]
label = "label"
TOML
for place in device host; do
    train_from "$scratch/tokens.toml" "tokens-$place" --set "data.root=$scratch" --set "data.resident=$place"
done
diff -r "$scratch/tokens-device/checkpoints" "$scratch/tokens-host/checkpoints"
# As many tasks as fill the shared memory that needs no permission; launches waited for one by one.
TASKLOOM_SYNC_LAUNCHES=1 train many --set synthetic.agree=8 --set synthetic.oppose=4 --set synthetic.alone=0 \
    --set synthetic.features=32 --set surgery.method=graddrop
# Gradients of two rounds on two lanes, committed one after the other.
train sliced --set schedule.mode=time_sliced --set schedule.max_staleness=1 --set train.fuse=1
# Buffers by task, and products of what takes the gradients' place.
train buffers --set surgery.method=moco --set surgery.granularity=tensor
