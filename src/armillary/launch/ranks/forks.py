"""The process that ranks on this machine are forked from, with all their imports done.

A command starts it before its own imports, so both import PyTorch at the same time. Imports no torch itself.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from multiprocessing import forkserver, resource_tracker

# The first optimizer of a process imports torch._dynamo.
_PRELOAD = ["armillary.launch.ranks.large", "torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo"]
_COMPILER = "torch._inductor.compile_fx"


def launched() -> bool:
    """Whether this process is one of several ranks that a launcher has started."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def start_fork_server(compiles: bool) -> None:
    """Start it, if it does not run; with the compiler, if ranks compile their layers. Ranks ignore Ctrl-C and SIGTERM.

    Returns at once.
    """
    # Large pages for PyTorch's tensors on the host (`armillary.model.prefer_large_pages`)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mp.get_context("forkserver").set_forkserver_preload([*_PRELOAD, *([_COMPILER] if compiles else [])])
    resource_tracker.ensure_running()  # if started later, it would unblock the signals that are blocked here
    # A launcher that ends a job signals all its processes. Ranks get the request through ``stop``, so only SIGKILL ends
    # them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
