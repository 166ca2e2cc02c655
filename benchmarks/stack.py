"""Models times tokens per second of stacks, by the number of models in them, and the share of the device's ceiling.

For each shape a single model's step (K = 1) and steps of stacks of K models, forward, backward and optimizer, on random
tokens already on the device, in the precision that is the faster one for a single model. The ceiling is a square matrix
product, measured in the same run in both precisions. On a CPU one thread is used, and CPU time is counted, so that a
busy machine matters less; on an accelerator wall time.

    python benchmarks/stack.py
    python benchmarks/stack.py --members 1,8,64,256 --json stack.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import run_spec, shape, write_json

from armillary.corpus import Batch
from armillary.model import Transformer
from armillary.recipe import RunSpec
from armillary.train import Stack, build_optimizer, default_device, stack_capacity, train_step

# layers, width, vocabulary, context; batches of 8 sequences
SHAPES = ((2, 64, 512, 128), (4, 128, 4096, 256))
BATCH = 8


def specification(layers: int, width: int, vocabulary: int, context: int, precision: str) -> RunSpec:
    """A run of that shape; what it is called and reads does not matter here."""
    return run_spec(
        shape(layers, width, -(-8 * width // 3 // 16) * 16, vocabulary),
        {"random": 1.0},
        lr=1e-4,
        corpus="",
        context_length=context,
        batch_sequences=BATCH,
        steps=1,
        seed=0,
        precision=precision,
    )


def stepper(spec: RunSpec, members: int, device: torch.device) -> Callable[[], Any]:
    """A step of this many models; a single one runs without a stack."""
    models = [Transformer(spec.model) for _ in range(members)]
    for seed, model in enumerate(models):
        model.init_weights(seed)
        model.to(device)
    optimizers = [build_optimizer(model, spec) for model in models]
    size = (members, BATCH, spec.context_length + 1)
    batch = torch.randint(spec.model.vocab_size, size, device=device)
    if members == 1:
        return partial(train_step, models[0], optimizers[0], spec, 0, Batch(batch[0]))
    stack = Stack(spec, members, device)
    for row, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        stack.put(row, model, optimizer)
    return partial(stack.step, [(spec, 0)] * members, [Batch(tokens) for tokens in batch])


def seconds_of(action: Callable[[], Any], device: torch.device, at_least_s: float) -> float:
    """Seconds of one call, over as many as take ``at_least_s``."""
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    wait = (lambda: None) if on_cpu else partial(torch.accelerator.synchronize, device)
    wait()
    begin, calls = clock(), 0
    while clock() - begin < at_least_s:
        action()
        calls += 1
        wait()
    return (clock() - begin) / calls


def ceiling(device: torch.device, precision: str) -> float:
    """FLOPs per second of square matrix products, of the size that is the best."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for side in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        a @ b
        seconds = min(seconds_of(partial(torch.matmul, a, b), device, 0.2) for _ in range(3))
        best = max(best, 2 * side**3 / seconds)
        if seconds > 0.1:  # emulated: a larger one would take minutes
            break
    return best


def main() -> None:
    """Measure every shape and number of members; print Markdown, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", help="numbers of models, with commas (CPU: 1,4,16; else 1,8,64,256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement in a round")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = default_device()
    members = options.members or ("1,4,16" if device.type == "cpu" else "1,8,64,256")
    limits = {precision: ceiling(device, precision) for precision in ("fp32", "bf16")}
    top = max(limits.values())
    print(
        "Matrix product: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits.items()),
        flush=True,
    )
    print("\n| Shape | Models | Precision | Tokens/s, all models | Ratio to one | Share of the ceiling |")
    print("|---|---|---|---|---|---|")
    rows = []
    for size in SHAPES:
        # Which precision is the faster is asked of a single model: where half precision is emulated, stacks would
        # take minutes to say the same.
        alone = {}
        for precision in limits:
            step = stepper(specification(*size, precision), 1, device)
            step()
            alone[precision] = seconds_of(step, device, options.seconds)
        precision = min(alone, key=lambda name: alone[name])
        spec = specification(*size, precision)
        steps = {}
        for count in map(int, members.split(",")):
            if stack_capacity(spec, count, device) < count:
                print(f"no memory for {count} models of {size}", file=sys.stderr)
                break
            steps[count] = stepper(spec, count, device)
            steps[count]()
        # In turn, so that what the machine does besides shows in all alike.
        seconds: dict[int, list[float]] = {count: [] for count in steps}
        for _ in range(options.rounds):
            for count, step in steps.items():
                seconds[count].append(seconds_of(step, device, options.seconds))
        rates = {count: count * spec.batch_tokens / statistics.median(taken) for count, taken in seconds.items()}
        for count, rate in rates.items():
            share = rate * spec.model.train_flops_per_token(spec.context_length) / top
            ratio = rate / rates[min(rates)]
            name = f"{size[0]} layers × {size[1]}, vocabulary {size[2]}, context {size[3]}"
            print(f"| {name} | {count} | {precision} | {rate:,.0f} | {ratio:.2f} | {share:.0%} |", flush=True)
            rows.append({"shape": size, "members": count, "precision": precision, "tokens_per_s": rate, "share": share})
    write_json(options.json, "stack", device=str(device), ceiling=limits, rows=rows)


if __name__ == "__main__":
    main()
