#!/usr/bin/env bash
# Packs everything that a GPU host needs into one folder: the program with its kernels and the tests (stripped), the example
# configurations, scripts/gpu-check.sh, and what ../shared has of the PyTorch baseline and the library that plays a driver. No Rust
# and no network there; its C library must be as new as this machine's. The folder is tried out before it counts as made: the
# stages that need no card run in a copy.
# The folder's archive beside it is what to carry.
#     scripts/gpu-bundle.sh [FOLDER]          default: target/gpu-bundle
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
folder="${1:-${CARGO_TARGET_DIR:-target}/gpu-bundle}"
limit_mib=60
tests=(emulated emulated_runs emulated_bytes no_card)

# A program without kernels would be of no use there: nvcc has to be here.
scripts/cuda-toolkit.sh
cargo build --release --bin taskloom
version=$("${CARGO_TARGET_DIR:-target}/release/taskloom" --version)
if [[ "$version" != *"kernels for"* ]]; then
    echo "this build has no CUDA kernels ($version): see what scripts/cuda-toolkit.sh says" >&2
    exit 1
fi

# Paths of test executables are in cargo's messages; `lib` holds the kernels' cases.
messages=$(cargo test --release --no-run --message-format=json --lib --bin taskloom "${tests[@]/#/--test=}")
executable() {
    python3 -c '
import json, sys
kind, name = sys.argv[1:]
for line in sys.stdin:
    message = json.loads(line)
    target = message.get("target", {})
    test = message.get("profile", {}).get("test")
    if message.get("executable") and test and kind in target["kind"] and target["name"] == name:
        print(message["executable"])
' "$@" <<<"$messages" | sed -n '$p'
}

rm -rf "$folder"
mkdir -p "$folder/tests" "$folder/configs"
pack() {
    [[ -n "$1" && -x "$1" ]] || { echo "there is no executable for $2" >&2; exit 1; }
    strip -o "$folder/$2" "$1"
}
pack "${CARGO_TARGET_DIR:-target}/release/taskloom" taskloom
pack "$(executable lib taskloom)" tests/cases
for name in "${tests[@]}"; do
    pack "$(executable test "$name")" "tests/$name"
done
cp configs/emulated.toml configs/quickstart.toml "$folder/configs/"
cp scripts/gpu-check.sh scripts/torch_products.py "$folder/"
softgpu=$(scripts/softgpu.sh)
if [[ -n "$softgpu" ]]; then
    mkdir "$folder/softgpu"
    # The name that is looked for first.
    strip -o "$folder/softgpu/libcuda.so" "$softgpu/libcuda.so"
fi
if [[ -d ../shared/bench ]]; then
    cp -r ../shared/bench "$folder/bench"
fi
git rev-parse HEAD >"$folder/commit"
ldd --version | sed -n 1p >"$folder/glibc"

tar -C "$folder" -cJf "$folder.tar.xz" .
size=$(du -m "$folder.tar.xz" | cut -f 1)
if ((size > limit_mib)); then
    echo "$folder.tar.xz takes $size MiB, more than $limit_mib" >&2
    exit 1
fi

# The self-test: somewhere else, and without this checkout's tools.
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
tar -C "$empty" -xJf "$folder.tar.xz"
(cd "$empty" && env -i HOME="$empty" PATH=/usr/bin:/bin ./gpu-check.sh out cpu emulated softgpu)
echo "$folder.tar.xz: $size MiB, commit $(cat "$folder/commit"), $version, needs $(cat "$folder/glibc") or newer"
