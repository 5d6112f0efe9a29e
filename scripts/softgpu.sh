#!/usr/bin/env bash
# Builds the library that plays an NVIDIA driver on the CPU from ../shared/softgpu, in target/softgpu, and prints the folder where
# libcuda.so.1 is; prints nothing where there are no such sources.
set -euo pipefail
cd "$(dirname "$0")/.."
sources=../shared/softgpu
folder="${CARGO_TARGET_DIR:-target}/softgpu"

if [[ ! -f "$sources/Cargo.toml" ]]; then
    exit 0
fi
mkdir -p "$folder/lib"
# The sources may be read-only. What did not change is not copied again, so cargo builds it once.
cp -r --update --no-preserve=mode,timestamps "$sources/." "$folder/"
folder=$(cd "$folder" && pwd)
# From within the folder: its flags for the compiler are in its own .cargo/config.toml.
(cd "$folder" && env -u CARGO_TARGET_DIR cargo build --quiet --release --lib >&2)
for name in libcuda.so libcuda.so.1; do
    ln -sf ../target/release/libcuda.so "$folder/lib/$name"
done
echo "$folder/lib"
