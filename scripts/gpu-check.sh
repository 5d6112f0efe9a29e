#!/usr/bin/env bash
# Runs in a folder made by gpu-bundle.sh, on a machine with an NVIDIA card: checks and measurements in stages, each over in well
# under ten minutes. OUT_DIR gets results.jsonl (a line for each check and measurement, added as it comes), the whole logs, and
# the run folders that later stages compare with. A failed check makes the exit code 1 but stops nothing.
#     ./gpu-check.sh OUT_DIR [STAGE]...
set -uo pipefail
all=(cpu emulated softgpu cases sanitizer bench torch ncu)
usage() {
    echo "usage: ./gpu-check.sh OUT_DIR [STAGE]..., of ${all[*]}; without a stage all of them" >&2
    exit 2
}

(($# > 0)) && [[ "$1" != -* ]] || usage
mkdir -p "$1/logs" "$1/runs" || exit 2
out=$(cd "$1" && pwd)
shift
stages=("$@")
(($#)) || stages=("${all[@]}")
for name in "${stages[@]}"; do
    [[ " ${all[*]} " == *" $name "* ]] || usage
done
cd "$(dirname "$0")" || exit 2
export TASKLOOM_BIN="$PWD/taskloom" out
results="$out/results.jsonl"
failed=0

# Seconds that a stage may take in all; a check that it leaves no time for is not run, and has not passed.
limit=${TASKLOOM_STAGE_SECONDS:-540}
deadline=0
stage=""

# note NAME FIELDS: a line of the results.
note() {
    printf '{"stage":"%s","name":"%s",%s}\n' "$stage" "$1" "$2" | tee -a "$results"
}

skip() {
    note "$1" "\"passed\":null,\"skipped\":\"$2\""
}

# bounded COMMAND...: a program or a function of this file, with all that it started, until the stage's time is over.
bounded() {
    timeout --kill-after=10 $((deadline - SECONDS)) bash -c '"$@"' bounded "$@"
}

# begin NAME: false, and noted, where the stage has no time left for it.
begin() {
    log="$out/logs/$stage-${1//[^a-zA-Z0-9_.]/-}.log"
    start=$SECONDS
    ((deadline > SECONDS)) && return
    failed=1
    note "$1" '"passed":false,"error":"not run: the stage had no time left"'
    return 1
}

# end NAME PASSED
end() {
    note "$1" "\"passed\":$2,\"seconds\":$((SECONDS - start)),\"log\":\"logs/${log##*/}\""
    $2 && return
    failed=1
    tail -n 20 "$log"
    return 1
}

# check NAME COMMAND...: whether it passed.
check() {
    local name=$1 passed=true
    shift
    begin "$name" || return
    bounded "$@" >"$log" 2>&1 || passed=false
    end "$name" $passed
}

# measure NAME COMMAND...: its lines are results, and stand in OUT_DIR/NAME.jsonl too.
measure() {
    local name=$1 own="$out/${1// /-}.jsonl" passed=true
    shift
    begin "$name" || return
    : >"$own"
    bounded "$@" 2>"$log" | tee -a "$results" "$own" || passed=false
    end "$name" $passed
}

# train NAME CONFIG DEVICE: a run in OUT_DIR/runs.
train() {
    rm -rf "$out/runs/$1"
    ./taskloom train "configs/$2" --run-dir "$out/runs/$1" --set "run.device=$3"
}

# reference NAME CONFIG DEVICE: as train, unless an earlier stage has been there.
reference() {
    [[ -f "$out/runs/$1/summary.json" ]] || train "$@"
}

# The same bytes from two runs.
twice() {
    train "$1-again" "$2" "$3" && reference "$1" "$2" "$3" &&
        diff -r "$out/runs/$1/checkpoints" "$out/runs/$1-again/checkpoints"
}

# Dev losses of two runs, evaluation by evaluation, within 3 %.
curves_agree() {
    python3 - "$out/runs/$1" "$out/runs/$2" <<'PYTHON'
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

# On the library that plays the driver.
on_softgpu() {
    LD_LIBRARY_PATH="$PWD/softgpu" "$@"
}

export -f train reference twice curves_agree on_softgpu

cuda_cases() {
    tests/cases --list cuda:: 2>/dev/null | sed -n 's/: test$//p'
}

# Cases that run at the same time where each has a process: they wait for the host most of the time.
at_once=$(($(nproc) < 12 ? $(nproc) : 12))

# each_case NAME COMMAND...: a process for every case. They share the card's context within one, and a broken context is broken
# for all of them.
each_case() {
    local name=$1 case jobs=()
    shift
    for case in $(cuda_cases); do
        (($(jobs -rp | wc -l) < at_once)) || wait -n
        check "$name, $case" "$@" tests/cases "$case" --exact --test-threads=1 &
        jobs+=($!)
    done
    for case in "${jobs[@]}"; do
        wait "$case" || failed=1
    done
}

has_python() {
    command -v python3 >/dev/null && return
    skip "$1" "there is no python3"
    return 1
}

# Where a tool of the CUDA toolkit is, if anywhere.
tool() {
    command -v "$1" || ls "/usr/local/cuda/bin/$1" 2>/dev/null
}

stage_cpu() {
    check "no card" tests/no_card
    check "quickstart on the cpu" train quickstart-cpu quickstart.toml cpu
}

stage_emulated() {
    check "cases on emulated" tests/cases emulated::
    check "training on emulated" tests/emulated
    check "runs on emulated" tests/emulated_runs
    check "runs of the same bytes" tests/emulated_bytes
    check "emulated twice" twice small-emulated emulated.toml emulated
}

stage_softgpu() {
    [[ -f softgpu/libcuda.so ]] || { skip softgpu "the bundle was made without it"; return; }
    check "cases on softgpu" on_softgpu tests/cases cuda::
    check "emulated.toml on softgpu" on_softgpu train small-softgpu emulated.toml cuda
}

stage_cases() {
    check "cases on cuda" tests/cases cuda:: || each_case "case on cuda" env
    check "quickstart on cuda, twice" twice quickstart-cuda quickstart.toml cuda
    check "emulated.toml on cuda" train small-cuda emulated.toml cuda
    has_python "loss curves" || return
    check "quickstart on the cpu" reference quickstart-cpu quickstart.toml cpu
    check "loss curves of cuda and cpu" curves_agree quickstart-cuda quickstart-cpu
    check "emulated.toml on emulated" reference small-emulated emulated.toml emulated
    check "loss curves of cuda and emulated" curves_agree small-cuda small-emulated
}

stage_sanitizer() {
    local sanitizer
    sanitizer=$(tool compute-sanitizer) || { skip compute-sanitizer "not installed"; return; }
    # Slow, and slowest on the products: case by case, so that what each reached is known.
    for name in memcheck initcheck synccheck racecheck; do
        each_case "$name" "$sanitizer" --tool "$name" --error-exitcode 1
    done
}

stage_bench() {
    measure "bench kernels" ./taskloom bench kernels --json
    # Encoder, tasks, examples, longest sequence, layers, method.
    local encoder tasks batch seq layers method shape
    while read -r encoder tasks batch seq layers method; do
        shape=(--encoder "$encoder" --tasks "$tasks" --batch "$batch" --seq "$seq" --layers "$layers" --method "$method")
        measure "bench step $encoder $tasks $batch $seq $layers $method" \
            ./taskloom bench step --device cuda --json --runs 50 "${shape[@]}"
        measure "profile $encoder $tasks $batch $seq $layers $method" \
            ./taskloom bench step --device cuda --json --runs 10 --profile "${shape[@]}"
    done <<'SHAPES'
linear 8 16 64 2 pcgrad
linear 8 256 64 2 pcgrad
linear 8 1024 64 2 pcgrad
linear 64 16 64 2 pcgrad
linear 8 256 64 2 cagrad
bag 8 256 64 2 pcgrad
transformer 8 8 64 2 pcgrad
transformer 8 32 128 12 pcgrad
transformer 8 32 128 12 sum
transformer 16 4 512 12 pcgrad
SHAPES
}

stage_torch() {
    has_python pytorch || return
    python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null ||
        { skip pytorch "not installed, or without CUDA"; return; }
    if [[ -s "$out/bench-kernels.jsonl" ]]; then
        measure "torch products" python3 torch_products.py "$out/bench-kernels.jsonl"
    else
        skip "torch products" "stage bench has left no bench-kernels.jsonl"
    fi
    [[ -f bench/step_torch.py ]] || { skip "torch step" "the bundle was made without it"; return; }
    for method in sum libmtl torchjd; do
        if [[ $method == torchjd ]] && ! python3 -c 'import torchjd' 2>/dev/null; then
            skip "torch step torchjd" "torchjd is not installed"
            continue
        fi
        measure "torch step $method" python3 bench/step_torch.py --model linear --tasks 8 --batch 256 --method "$method" \
            --device cuda --bf16 --steps 20
    done
    python3 -c 'import transformers' 2>/dev/null || { skip "torch step bert" "transformers is not installed"; return; }
    local layers batch seq compiled
    while read -r layers batch seq compiled; do
        measure "torch step bert $layers $batch $seq $compiled" python3 bench/step_torch.py --model bert --layers "$layers" --tasks 8 \
            --batch "$batch" --seq "$seq" --method sum --device cuda --bf16 --steps 20 ${compiled:+"$compiled"}
    done <<'SHAPES'
2 8 64
2 8 64 --compile
12 32 128
12 32 128 --compile
SHAPES
}

stage_ncu() {
    local ncu
    ncu=$(tool ncu) || { skip ncu "not installed"; return; }
    for kernel in gemm_forward gemm_input gemm_weight gram_8 update_weights; do
        check "ncu $kernel" "$ncu" --kernel-name "$kernel" --launch-skip 2 --launch-count 1 --set detailed \
            ./taskloom bench kernels --runs 1
        if grep -q ERR_NVGPUCTRPERM "$log" 2>/dev/null; then
            skip ncu "this user may not read the card's counters"
            return
        fi
    done
}

stage=machine
note "$(uname -n)" "\"commit\":\"$(cat commit)\",\"kernel\":\"$(uname -sr)\",\"card\":\"$(nvidia-smi \
    --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1)\",\"stages\":\"${stages[*]}\""
# A card that a check asks for has to be there.
export TASKLOOM_REQUIRE_CUDA=1
for stage in "${stages[@]}"; do
    deadline=$((SECONDS + limit))
    "stage_$stage"
done
exit $failed
