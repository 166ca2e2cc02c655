"""How fast a square matrix product runs here: the ceiling that training is held against.

Measures one back end (torch, oneDNN or numpy's BLAS) in one precision with a given number of threads. Says "ready",
waits for a line on standard input, so that several of these begin at once, and answers with a line of JSON. The
fastest layout (either factor transposed) counts.

Trade-off: a precision that the processor emulates would take minutes at 2048, and is measured at 512 instead; the
answer names the size.

    echo | python benchmarks/peers/products.py torch bf16 1
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

BACKEND, PRECISION, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3])
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(THREADS)  # numpy's BLAS reads it when it is loaded

import numpy as np  # noqa: E402 (after the number of threads is set)
import torch  # noqa: E402

SECONDS = 2.0


def layouts(size: int) -> list[Callable[[], Any]]:
    """The product of two square matrices, by each way that they can lie in memory."""
    a, b = torch.randn(2, size, size)
    if BACKEND == "numpy":
        x, y = a.numpy(), b.numpy()
        return [lambda: x @ y, lambda: x @ y.T, lambda: x.T @ y]
    if BACKEND == "onednn":
        dense = a.to_mkldnn()
        return [lambda: torch._C._nn.mkldnn_linear(dense, b)]
    if PRECISION == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    return [lambda: a @ b, lambda: a @ b.t(), lambda: a.t() @ b]


def rate(product: Callable[[], Any], size: int, seconds: float) -> float:
    """GFLOP/s over at least ``seconds``."""
    begin, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begin < seconds:
        product()
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - begin) / 1e9


def main() -> None:
    """Warm up, wait for the signal, measure."""
    torch.set_num_threads(THREADS)
    trials = [(rate(product, 256, 0.2), index) for index, product in enumerate(layouts(256))]
    best, layout = max(trials)
    size = 2048 if best > 20 else 512
    product = layouts(size)[layout]
    product()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps({"gflops": rate(product, size, SECONDS), "size": size, "numpy": np.__version__}), flush=True)


if __name__ == "__main__":
    main()
