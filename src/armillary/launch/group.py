"""A process takes its place among the ranks: its device, its backend, its process group.

Which device that is and how ranks talk on it is PyTorch's to say, so this is the same program on any of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from armillary.model import keep_freed_memory
from armillary.train import default_device

_PATIENCE = timedelta(minutes=30)


@contextlib.contextmanager
def joined() -> Iterator[torch.device]:
    """The device of this rank, whose place is told by the environment as torchrun sets it; all ranks are there.

    On a CPU the ranks of a machine share its cores, where OMP_NUM_THREADS does not say otherwise.
    """
    if importlib.util.find_spec("torch_npu") is not None:
        importlib.import_module("torch_npu")
    device = default_device()
    backend = "gloo"
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
        torch.accelerator.set_device_index(device.index)
        # for what goes round on the CPU beside the device's own
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device.type)}"
    else:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0))
            torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()
