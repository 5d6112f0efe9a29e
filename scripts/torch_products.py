"""The products and attentions that `taskloom bench kernels --json` timed, by torch.matmul and scaled_dot_product_attention on the same
card, on random values.

usage: torch_products.py BENCH_KERNELS.jsonl
Prints a JSON line for each, of the same form; ratio_to_torch is the rate of ours over PyTorch's. Needs PyTorch with CUDA.
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


def product(kind, shape):
    """PyTorch's name for a product, its work, and its operations."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    left, right, out = operands(kind, m, n, k)
    return "torch.matmul", lambda: torch.matmul(left, right, out=out), 2 * m * n * k


def attention(kind, shape):
    """As product. The backward pass is that of autograd alone."""
    attend = torch.nn.functional.scaled_dot_product_attention
    sequences = shape["tokens"] // shape["length"]
    size = sequences, shape["heads"], shape["length"], shape["dim"]
    q, k, v, dout = (torch.randn(*size, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    product = 2 * sequences * shape["heads"] * shape["length"] ** 2 * shape["dim"]
    if kind == "attention_forward":
        return attend.__name__, lambda: attend(q, k, v), 2 * product
    of = [x.requires_grad_() for x in (q, k, v)]
    out = attend(*of)
    return attend.__name__, lambda: torch.autograd.grad(out, of, dout, retain_graph=True), 5 * product


def main():
    torch.manual_seed(0)
    for line in map(json.loads, open(sys.argv[1])):
        kind = line["name"].split()[0]
        of = {"gemm": product, "attention": attention}.get(kind.split("_")[0])
        if "tflops" not in line or not of:
            continue
        shape = line["parameters"]
        name, work, operations = of(kind, shape)
        found = times(work)
        at = lambda share: found[round((len(found) - 1) * share)]
        tflops = operations / at(0.5) / 1e9
        print(json.dumps({
            "name": f"{name} {line['name']}", "parameters": shape, "ms": at(0.5), "ms_p10": at(0.1), "ms_p90": at(0.9),
            "runs": RUNS, "tflops": tflops, "device": torch.cuda.get_device_name(), "torch": torch.__version__,
            "ratio_to_torch": line["tflops"] / tflops,
        }), flush=True)


main()
