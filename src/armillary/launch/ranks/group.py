"""Sets up a rank: its device, backend and process group.

PyTorch chooses the device and its backend, so the program is the same on any of them. The launcher's settings are read
from the environment, as torchrun sets it, and are checked before any rank waits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from armillary.model import keep_freed_memory
from armillary.recipe import ArmillaryError, UsageError
from armillary.resilience import START_S
from armillary.train import default_device

_PATIENCE = timedelta(seconds=START_S)  # until the first steps are measured (`armillary.resilience.patience`)


@contextlib.contextmanager
def joined() -> Iterator[torch.device]:
    """Join the process group described by torchrun's environment variables; return the device of this rank.

    On a CPU, the ranks of a machine share its cores, unless OMP_NUM_THREADS is set.

    Raises:
        UsageError: a variable is missing or wrong.
        ArmillaryError: the ranks could not connect: the port is in use, a host is unreachable, or a rank did not start.
    """
    rank, ranks = place()
    where = meeting_place()
    if importlib.util.find_spec("torch_npu") is not None:
        importlib.import_module("torch_npu")
    device = default_device()
    backend = "gloo"
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
        torch.accelerator.set_device_index(device.index)
        # gloo for communication on the CPU, next to the device's own backend
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device.type)}"
    else:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0))
            torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        dist.init_process_group(backend, timeout=_PATIENCE, **_store(rank, ranks))
    except (RuntimeError, ValueError, OSError) as error:  # DistError is a RuntimeError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArmillaryError(
            f"rank {rank} of {ranks} could not reach the others at {where}: {lines[0]}; the port must be free on that "
            "host and open to all others, and every rank must be started with the same address and number of ranks"
        ) from error
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _store(rank: int, ranks: int) -> dict[str, Any]:
    """Arguments of ``init_process_group`` for the store of a launcher's agent; empty if the launcher has none.

    torchrun keeps this store over all attempts. Without a prefix, a restarted rank reads the addresses of processes
    that have ended, and the ranks never connect.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.TCPStore(  # type: ignore[attr-defined]
        _value("MASTER_ADDR"), _number("MASTER_PORT"), is_master=False, wait_for_workers=False, timeout=_PATIENCE
    )
    prefix = f"armillary/{ranks}/{attempt}"
    prefixed = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    return {"store": prefixed, "rank": rank, "world_size": ranks}


def place() -> tuple[int, int]:
    """This process's rank and the number of ranks, from ``RANK`` and ``WORLD_SIZE``.

    Raises:
        UsageError: one is missing or not a number, or they do not fit together.
    """
    rank, ranks = _number("RANK"), _number("WORLD_SIZE")
    if not 0 <= rank < ranks:
        raise UsageError(f"the launcher's environment: RANK is {rank}, but must be 0 to WORLD_SIZE - 1 ({ranks - 1})")
    return rank, ranks


def meeting_place() -> str:
    """The rendezvous address HOST:PORT, from ``MASTER_ADDR`` and ``MASTER_PORT``.

    Raises:
        UsageError: one is missing, or the port is not valid.
    """
    host, port = _value("MASTER_ADDR"), _number("MASTER_PORT")
    if not 0 <= port < 2**16:
        raise UsageError(f"the launcher's environment: MASTER_PORT is {port}, but a port is 1 to {2**16 - 1}")
    return f"{host}:{port}"


def _number(name: str) -> int:
    value = _value(name)
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"the launcher's environment: {name} is '{value}', but must be a whole number") from None


def _value(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise UsageError(
            f"the launcher's environment lacks {name}; it needs RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which "
            "torchrun sets. To start ranks on this machine instead, unset RANK and WORLD_SIZE and give --nproc"
        )
    return value
