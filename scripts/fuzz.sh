#!/usr/bin/env bash
# Broken, hostile and odd inputs for everything that reads what others wrote (tests/fuzz), always new ones, for so many minutes:
#     scripts/fuzz.sh MINUTES [TARGET,...]
# A fixed set, as many for each target (a dear one gets its share), the same on every machine:
#     scripts/fuzz.sh inputs COUNT [TARGET,...]
# One input again:
#     scripts/fuzz.sh again TARGET NUMBER
# Ends with a table by target. An input that did harm lies under target/fuzz, with what it did in finding.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n 's/^#  *\(scripts.*\)/usage: \1/p' "$0" >&2
    exit 2
}

case "${1:-}:$#" in
inputs:[23]) export FUZZ_INPUTS="$2" FUZZ_FIRST=0 only="${3:-}" ;;
again:3) export FUZZ_INPUTS=1 FUZZ_FIRST="$3" only="$2" ;;
[1-9]*:[12]) export FUZZ_MINUTES="$1" FUZZ_FIRST="$(date +%s)000" only="${2:-}" ;;
*) usage ;;
esac
if [ -n "$only" ]; then
    export FUZZ_TARGETS="$only"
fi
exec cargo test --release --test fuzz no_input_does_harm -- --exact --nocapture
