#!/usr/bin/env bash
# Builds the wheel into target/wheels: one file with the program and its kernels, which needs no Rust and no CUDA toolkit where it is
# installed; with TASKLOOM_CUDA_TARGETS=all for every kind of card. What cargo has built is used again. With `check`: then installs it into an empty virtual environment, trains a few rounds of the
# quickstart there and asks for completions and manual pages. Without Python or maturin it says so and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${CARGO_TARGET_DIR:-target}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if ! python3 -m venv "$scratch/build" 2>/dev/null; then
    echo "skipped: there is no python3 with venv: no wheel is built"
    exit 0
fi
if ! "$scratch/build/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9,<2' 2>"$scratch/why"; then
    echo "skipped: maturin cannot be fetched ($(tail -n 1 "$scratch/why")): no wheel is built"
    exit 0
fi
rm -rf "$target/wheels"
# The very flags of `cargo build --release`, so that nothing is compiled twice.
"$scratch/build/bin/maturin" build --release --locked --out "$target/wheels"
wheel=$(echo "$target"/wheels/*.whl)
echo "$wheel: $(du -h "$wheel" | cut -f1)"

if [[ "${1:-}" == check ]]; then
    python3 -m venv "$scratch/user"
    "$scratch/user/bin/pip" install --quiet --disable-pip-version-check --no-index "$wheel"
    taskloom="$scratch/user/bin/taskloom"
    configs="$PWD/configs"
    # Nothing of the checkout is needed but the configuration.
    (
        cd "$scratch"
        "$taskloom" --version
        "$taskloom" train "$configs/quickstart.toml" --run-dir "$scratch/run" --set train.rounds=8 --set eval.every=4
        "$taskloom" completions bash | grep -q '_taskloom()'
        "$taskloom" man --out "$scratch/man" >/dev/null
        test -s "$scratch/man/taskloom-train.1"
    )
    test -s "$scratch/run/summary.json"
    echo "the wheel works in an empty environment"
fi
