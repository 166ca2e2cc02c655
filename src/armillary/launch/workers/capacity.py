"""How many worker processes fit on this machine, given its cores and memory and the limits of a container.

The system kills a worker without enough memory in the middle of its run. A worker without a free core only slows the
others down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from armillary.recipe import ModelShape, counted

# A process with PyTorch and this package, before it has a model (0.3 GiB measured) and during its first steps.
_PROCESS_BYTES = 500 * 2**20
_SHARE = 0.9  # of the available memory; the rest is a reserve for other growth
_UNLIMITED = 2**60  # cgroup version 1 writes a number close to 2**63 for "unlimited"


def worker_bytes(shape: ModelShape, batch_tokens: int) -> int:
    """Estimated host memory of a worker that trains a model of ``shape`` on ``batch_tokens`` per step."""
    if torch.accelerator.device_count():  # the model is on the device
        return _PROCESS_BYTES
    states = 4 * 4 * shape.parameters  # weights, gradients, two moments
    heads = 2 * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
    activations = 4 * batch_tokens * shape.n_layers * (4 * shape.d_model + heads + 3 * shape.d_ff)
    return _PROCESS_BYTES + states + activations


def fit_workers(wanted: int, need: int) -> tuple[int, str | None]:
    """How many of the ``wanted`` workers (at least one) fit if each takes ``need`` bytes, and why if not all fit."""
    cores, memory = available_cores(), available_memory()
    limits = [(max(cores, torch.accelerator.device_count()), f"{counted(cores, 'core')} available")]
    if memory is not None:
        held = max(1, int(_SHARE * memory / need))
        reason = f"{memory / 2**30:.1f} GiB of memory available, and a worker takes about {need / 2**30:.1f} GiB"
        limits.append((held, reason))
    fit, why = min(limits)
    if wanted <= fit:
        return wanted, None
    return fit, f"{counted(fit, 'worker')} instead of {wanted}: {why}"


def default_workers() -> int:
    """One worker per accelerator if there is one, else one per core available to this process."""
    return torch.accelerator.device_count() or len(os.sched_getaffinity(0))


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes available without swapping, in the system and in every enclosing control group; None if unknown."""
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    files = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    for version, folder in _groups(root, "memory"):
        limit, used = (_number(_read(folder / name)) for name in files[version])
        if limit is not None and used is not None and limit < _UNLIMITED:
            found.append(max(0, limit - used + _droppable(_read(folder / "memory.stat"))))
    return min(found, default=None)


def available_cores(root: Path = Path("/")) -> int:
    """Cores available to this process, by its affinity and the quotas of all enclosing control groups."""
    found = [len(os.sched_getaffinity(0))]
    for version, folder in _groups(root, "cpu"):
        if version == 2:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        share, of = _number(quota), _number(period)
        if share is not None and of and share > 0:  # "max" or -1 without a quota
            found.append(max(1, math.ceil(share / of)))
    return min(found)


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """The folders of this process's control groups that limit ``controller``, with the version of their files."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:
            version, base = 2, root / "sys/fs/cgroup"
        elif controller in names.split(","):
            version, base = 1, root / "sys/fs/cgroup" / names
            base = base if base.exists() else base.with_name(controller)
        else:
            continue
        # inside a container the path may be the host's, while the container's own group is at the top
        inner = base / path.strip().lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(base):
                break
            yield version, folder


def _droppable(stat: str) -> int:
    """Bytes of cached files, which count as used but can be dropped."""
    entries = dict(line.split(maxsplit=1) for line in stat.splitlines() if " " in line)
    return _number(entries.get("total_inactive_file", entries.get("inactive_file", ""))) or 0


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
