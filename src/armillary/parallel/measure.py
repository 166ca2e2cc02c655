"""Measures a machine for the planner: matrix products over shapes, attention, memory, collectives.

All processes measure at the same time, so the figures are those of one process while the others work: on a CPU they
share cores and memory. Each figure is the best of ``_ROUNDS`` rounds. The result is a file that
``armillary plan --cluster`` takes as the accelerator.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context
from torch.nn import functional

from armillary.files import write_file
from armillary.recipe import ArmillaryError

_ROUNDS = 5
_SIDES = (256, 512, 1024, 2048)
_LARGE_SIDES = (1024, 2048, 4096, 8192)
_ATTENTION = (4, 4, 512, 64)  # batch, heads, tokens, dimensions
_TOKENS, _WIDTH, _WIDE = 1024, 512, 1536
_BYTES = 1 << 26
_SENT = 1 << 24


def measure_machine(processes: int, out: Path) -> dict[str, Any]:
    """Measure with ``processes`` processes, write the figures to ``out`` (TOML) and return them.

    Raises:
        ArmillaryError: a process failed.
    """
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        started = [
            context.Process(target=_measure, args=(rank, processes, folder, results)) for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        failed = [process.exitcode for process in started if process.exitcode]
        if failed:
            raise ArmillaryError(f"{len(failed)} of {processes} processes failed (exit code {failed[0]})")
        found: dict[str, Any] = results.get()
    write_file(out, _toml(found, processes).encode())
    return found


def _best(act: Callable[[], Any], ready: Callable[[], None]) -> float:
    """Seconds of the best of some rounds, each of about a twentieth of a second."""
    act()
    ready()
    begun = time.perf_counter()
    act()
    ready()
    repeats = max(1, int(0.05 / max(time.perf_counter() - begun, 1e-6)))
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        for _ in range(repeats):
            act()
        ready()
        best = min(best, (time.perf_counter() - begun) / repeats)
    return best


def _measure(rank: int, processes: int, folder: str, results: Any) -> None:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device("cpu") if accelerator is None else torch.device(accelerator.type, rank)
    if accelerator is None:
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    else:
        torch.accelerator.set_device_index(rank)
    dist.init_process_group(
        dist.get_default_backend_for_device(device),
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=processes,
        timeout=timedelta(minutes=5),
    )

    def ready() -> None:
        if accelerator is not None:
            torch.accelerator.synchronize()

    found = _figures(device, ready)
    found["link_gb_s"], found["link_latency_us"] = _links(device, processes, ready)
    dist.barrier()
    if rank == 0:
        results.put(found | {"device": device.type, "node": processes})
    dist.destroy_process_group()


def _figures(device: torch.device, ready: Callable[[], None]) -> dict[str, Any]:
    types = {"fp32": torch.float32} if device.type == "cpu" else {"fp32": torch.float32, "bf16": torch.bfloat16}
    peak, curve = {}, {}
    for name, dtype in types.items():
        rates = {}
        for side in _SIDES if device.type == "cpu" else _LARGE_SIDES:
            a, b = (
                torch.randn(side, side, device=device, dtype=dtype),
                torch.randn(side, side, device=device, dtype=dtype),
            )
            rates[side] = 2 * side**3 / _best(lambda a=a, b=b: a @ b, ready) / 1e12  # type: ignore[misc]
        peak[name], curve[name] = max(rates.values()), rates
    large = torch.empty(_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(large)
    bandwidth = 2 * _BYTES / _best(lambda: other.copy_(large), ready)
    dtype, name = (torch.float32, "fp32") if device.type == "cpu" else (torch.bfloat16, "bf16")
    attention = _attention(device, dtype, ready) / (peak[name] * 1e12)
    elementwise = _elementwise(device, dtype, ready, bandwidth)
    numbers = torch.zeros(1 << 22, device=device, requires_grad=True)
    numbers.grad = torch.ones_like(numbers)
    optimizer = torch.optim.AdamW([numbers], fused=True)
    stepped = _best(optimizer.step, ready) * bandwidth / numbers.numel()
    small = torch.ones(8, device=device)
    start = _best(lambda: small + small, ready)
    return {
        "peak": peak,
        "curve": curve,
        "bandwidth_gb_s": bandwidth / 1e9,
        "memory_gb": _memory(device) / 1e9,
        "start_us": start * 1e6,
        "shares": {
            "matmul": 1.0, "traffic": 1.0, "attention": attention, "bandwidth": 1.0, "elementwise": elementwise,
            "unfused": 1.0, "narrow_heads": 1.0, "misaligned": 1.0, "optimizer_bytes": stepped, "link": 1.0,
            "network": 1.0, "straggle": 0.0,
        },
    }  # fmt: skip


def _attention(device: torch.device, dtype: torch.dtype, ready: Callable[[], None]) -> float:
    """FLOP/s of causal attention, forward and backward, that count half of the pairs (3.5 times the forward pass)."""
    batch, heads, tokens, size = _ATTENTION
    q, k, v = (torch.randn(_ATTENTION, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def act() -> None:
        functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    return 3.5 * 4 * batch * heads * tokens * tokens / 2 * size / _best(act, ready)


def _elementwise(device: torch.device, dtype: torch.dtype, ready: Callable[[], None], bandwidth: float) -> float:
    """Time of norm, SwiGLU and residual, forward and backward, over that of their bytes (``compute.feed_forward``)."""
    x = torch.randn(_TOKENS, _WIDTH, device=device, dtype=dtype, requires_grad=True)
    gate, up = (torch.randn(_TOKENS, _WIDE, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    gain = torch.ones(_WIDTH, device=device, dtype=dtype)

    def act() -> None:
        normed = functional.rms_norm(x, (_WIDTH,), gain) + x
        mixed = functional.silu(gate) * up
        (normed.sum() + mixed.sum()).backward()

    counted = 3 * _TOKENS * (10 * _WIDTH + 6 * _WIDE) * dtype.itemsize / 2
    return _best(act, ready) * bandwidth / counted


def _links(device: torch.device, processes: int, ready: Callable[[], None]) -> tuple[float, float]:
    """GB/s of one process in an all-gather, and the microseconds of one step of its ring."""
    if processes == 1:
        return 1e3, 0.0
    parts = [torch.empty(_SENT // processes, dtype=torch.uint8, device=device) for _ in range(processes)]
    small = [torch.empty(8, dtype=torch.uint8, device=device) for _ in range(processes)]
    seconds = []
    for pieces in (parts, small):
        times = []
        for _ in range(_ROUNDS):
            dist.barrier()
            begun = time.perf_counter()
            dist.all_gather(pieces, pieces[0].clone())
            ready()
            times.append(time.perf_counter() - begun)
        seconds.append(min(times))
    latency = seconds[1] / (processes - 1)
    return _SENT * (processes - 1) / processes / max(seconds[0] - seconds[1], 1e-6) / 1e9, latency * 1e6


def _memory(device: torch.device) -> int:
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(torch.accelerator.get_memory_info(device.index)[1])


def _toml(found: dict[str, Any], processes: int) -> str:
    lines = [
        f"# Measured by armillary plan measure with {processes} process{'' if processes == 1 else 'es'} at once.",
        'vendor = "measured"',
        f"memory_gb = {found['memory_gb']:.2f}",
        f"bandwidth_gb_s = {found['bandwidth_gb_s']:.3f}",
        f"link_gb_s = {found['link_gb_s']:.4f}",
        f"node = {found['node']}",
        f"network_gb_s = {found['link_gb_s']:.4f}  # not measured: as inside the node",
        f"link_latency_us = {found['link_latency_us']:.1f}",
        f"network_latency_us = {found['link_latency_us']:.1f}",
        f"host = {found['start_us'] / 10:.3f}  # start of an operation, over the 10 us of a usual node",
        f"host_serial = {'true' if found['device'] == 'cpu' else 'false'}",
        "",
        "[peak]",
        *(f"{name} = {value:.5f}" for name, value in found["peak"].items()),
        "",
        "[shares]",
        *(f"{name} = {value:.4f}" for name, value in found["shares"].items()),
    ]
    for name, curve in found["curve"].items():
        lines.append(f"# {name}: TFLOP/s by side: " + ", ".join(f"{side}: {rate:.3f}" for side, rate in curve.items()))
    return "\n".join(lines) + "\n"
