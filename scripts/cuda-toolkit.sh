#!/usr/bin/env bash
# Puts a pinned CUDA compiler into target/cuda-toolkit, where build.rs finds it. Needs Python's pip, no GPU and no root.
# A folder may be given instead. Done already: does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

folder="${1:-${CARGO_TARGET_DIR:-target}/cuda-toolkit}"
# All five, since the wheels' own dependencies are not pinned and would drift to another release.
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.88
    nvidia-cuda-cccl==13.0.85
)

if [[ -f "$folder/packages" && "$(cat "$folder/packages")" == "${packages[*]}" ]]; then
    exit 0
fi
mkdir -p "$(dirname "$folder")"
scratch=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
    --target "$scratch/wheels" "${packages[@]}"
# nvcc finds nvvm, headers and libraries relative to itself.
mv "$scratch/wheels/nvidia/cu13" "$scratch/toolkit"
chmod +x "$scratch"/toolkit/bin/* "$scratch"/toolkit/nvvm/bin/* 2>/dev/null || true
"$scratch/toolkit/bin/nvcc" --version >/dev/null
echo "${packages[*]}" >"$scratch/toolkit/packages"
rm -rf "$folder"
mv "$scratch/toolkit" "$folder"
# Cargo looks at times of files: the next build must look for nvcc again.
touch build/nvcc.rs
