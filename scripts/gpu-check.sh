#!/usr/bin/env bash
# Runs in a folder made by gpu-bundle.sh, on a machine with an NVIDIA card: every kernel case natively and under
# compute-sanitizer, training twice and against the CPU, the benchmarks, and PyTorch beside them where it is installed. Writes
# one JSON-lines file; a failed check makes the exit code 1 but stops nothing.
#     ./gpu-check.sh [RESULTS]                default: results.jsonl
#     ./gpu-check.sh --self-test              CPU and emulated checks only; needs no card
set -uo pipefail
cd "$(dirname "$0")"
export TASKLOOM_BIN="$PWD/taskloom"
self_test=0
if [[ "${1:-}" == --self-test ]]; then
    self_test=1
    shift
fi
results="$PWD/${1:-results.jsonl}"
scratch=$(mktemp -d)
export scratch
trap 'rm -rf "$scratch"' EXIT
: >"$results"
failed=0

# Seconds that one check or measurement may take; what takes longer has failed.
limit=${TASKLOOM_CHECK_SECONDS:-600}

# bounded COMMAND...: a program or a function of this file, with all that it started, for at most so long.
bounded() {
    timeout "$limit" bash -c '"$@"' bounded "$@"
}

# check NAME COMMAND...: runs it and notes whether it passed; its last lines are shown where it did not.
check() {
    local name=$1 log="$scratch/log" start=$SECONDS passed=true
    shift
    if ! bounded "$@" >"$log" 2>&1; then
        passed=false
        failed=1
        tail -n 20 "$log"
    fi
    printf '{"name":"%s","passed":%s,"seconds":%d}\n' "$name" "$passed" $((SECONDS - start)) | tee -a "$results"
}

# measure COMMAND...: its JSON lines are results.
measure() {
    if ! bounded "$@" 2>"$scratch/log" | tee -a "$results"; then
        failed=1
        tail -n 5 "$scratch/log"
    fi
}

train() {
    ./taskloom train "configs/$1" --run-dir "$2" --set "run.device=$3" "${@:4}"
}

# The same bytes from two runs.
twice() {
    train "$1" "$scratch/one-$2" "$2" && train "$1" "$scratch/two-$2" "$2" &&
        diff -r "$scratch/one-$2/checkpoints" "$scratch/two-$2/checkpoints"
}

# Dev losses of two runs, evaluation by evaluation, within 3 %.
curves_agree() {
    python3 - "$@" <<'PYTHON'
import json, sys
def losses(run):
    lines = map(json.loads, open(run + "/metrics.jsonl"))
    return [task["loss"] for line in lines if line["kind"] == "eval" for _, task in sorted(line["tasks"].items())]
ours, theirs = map(losses, sys.argv[1:])
assert ours and len(ours) == len(theirs), (len(ours), len(theirs))
worst = max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(ours, theirs))
print(f"largest difference {worst:.4f}")
sys.exit(worst > 0.03)
PYTHON
}

export -f train twice curves_agree

printf '{"name":"machine","commit":"%s","kernel":"%s","card":"%s"}\n' "$(cat commit)" "$(uname -sr)" \
    "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1)" | tee -a "$results"

check "cases on emulated" tests/cases emulated::
check "no card" tests/no_card
check "training on emulated" tests/emulated
check "runs on emulated" tests/emulated_runs
check "quickstart on the cpu" train quickstart.toml "$scratch/quickstart-cpu" cpu
check "emulated twice" twice emulated.toml emulated
if ((self_test)); then
    exit $failed
fi

export TASKLOOM_REQUIRE_CUDA=1
check "cases on cuda" tests/cases cuda::
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [[ -n "$sanitizer" ]]; then
    for tool in memcheck racecheck synccheck initcheck; do
        check "cases under $tool" "$sanitizer" --tool "$tool" --error-exitcode 1 tests/cases cuda:: --test-threads=1
    done
else
    printf '{"name":"compute-sanitizer","passed":null,"skipped":"not installed"}\n' | tee -a "$results"
fi
check "quickstart on cuda, twice" twice quickstart.toml cuda
check "loss curves of cuda and cpu" curves_agree "$scratch/one-cuda" "$scratch/quickstart-cpu"
check "emulated.toml on cuda" train emulated.toml "$scratch/small-cuda" cuda
check "loss curves of cuda and emulated" curves_agree "$scratch/small-cuda" "$scratch/one-emulated"

measure ./taskloom bench kernels --json
for encoder in linear bag; do
    measure ./taskloom bench step --device cuda --encoder "$encoder" --json
done
if [[ -d bench ]] && python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    for method in sum torchjd libmtl; do
        measure python3 bench/step_torch.py --model linear --tasks 8 --batch 256 --method "$method" --device cuda --bf16 --steps 20
    done
else
    printf '{"name":"pytorch","passed":null,"skipped":"not installed, or without CUDA"}\n' | tee -a "$results"
fi
exit $failed
