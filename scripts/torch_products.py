"""The products that `taskloom bench kernels --json` timed, by torch.matmul on the same card, on random values.

usage: torch_products.py BENCH_KERNELS.jsonl
Prints a JSON line for each, of the same form; ratio_to_torch is the rate of ours over that of torch.matmul. Needs PyTorch with CUDA.
"""
import json
import sys

import torch

REPEATS = 10
RUNS = 15


def times(work):
    """Milliseconds of one call, ascending; the first two runs warm up."""
    found = []
    for run in range(RUNS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPEATS):
            work()
        end.record()
        end.synchronize()
        if run >= 2:
            found.append(start.elapsed_time(end) / REPEATS)
    return sorted(found)


def operands(kind, m, n, k):
    """Of one of the products of a linear layer: x (m x k), weight (n x k), dout (m x n)."""
    rows, inner, columns = {"gemm_forward": (m, k, n), "gemm_input": (m, n, k), "gemm_weight": (n, m, k)}[kind]
    noise = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    # In memory as they lie there: the weight of a forward pass and the gradient of a weight's are read transposed.
    left = noise(inner, rows).t() if kind == "gemm_weight" else noise(rows, inner)
    right = noise(columns, inner).t() if kind == "gemm_forward" else noise(inner, columns)
    return left, right, torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)


def main():
    torch.manual_seed(0)
    for line in map(json.loads, open(sys.argv[1])):
        kind = line["name"].split()[0]
        if "tflops" not in line or not kind.startswith("gemm_"):
            continue
        shape = line["parameters"]
        left, right, out = operands(kind, shape["m"], shape["n"], shape["k"])
        found = times(lambda: torch.matmul(left, right, out=out))
        at = lambda share: found[round((len(found) - 1) * share)]
        tflops = 2 * shape["m"] * shape["n"] * shape["k"] / at(0.5) / 1e9
        print(json.dumps({
            "name": f"torch.matmul {line['name']}", "parameters": shape, "ms": at(0.5), "ms_p10": at(0.1), "ms_p90": at(0.9),
            "runs": RUNS, "tflops": tflops, "device": torch.cuda.get_device_name(), "torch": torch.__version__,
            "ratio_to_torch": line["tflops"] / tflops,
        }), flush=True)


main()
