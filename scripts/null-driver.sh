#!/usr/bin/env bash
# Builds a CUDA driver's library whose calls do nothing (null_driver.c) in target/null-driver, and prints its folder. What the host itself
# takes for a round, without a card:
#   LD_LIBRARY_PATH=$(scripts/null-driver.sh) taskloom bench step --device cuda
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${CARGO_TARGET_DIR:-target}/null-driver"
mkdir -p "$folder"
cc -O1 -shared -fPIC -o "$folder/libcuda.so.1" scripts/null_driver.c
ln -sf libcuda.so.1 "$folder/libcuda.so"
cd "$folder" && pwd
