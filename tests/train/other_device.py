"""A fictional device with its own name: its tensors keep their numbers on the CPU, which also computes.

    python other_device.py NAME RUN FOLDER

trains the large run, given as JSON, on this device: as a rank under a launcher, otherwise alone, with a stop and a
restart in the middle.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = sys.argv[1]


class OnDevice(torch.Tensor):
    """A tensor of the device."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    def tolist(self) -> Any:  # PyTorch has it for its own class alone
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, dict(kwargs or {}))


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call the operator on the CPU; what it gives lies where the operator would have put it."""
    given, _ = tree_flatten((args, kwargs))
    known = {id(t.raw): t for t in given if isinstance(t, OnDevice)}
    host = {id(t) for t in given if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice)}
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs["device"] = "cpu"
    kwargs.pop("pin_memory", None)
    there = bool(known) if wanted is None else torch.device(wanted).type == NAME
    raw_args, raw_kwargs = tree_map_only(OnDevice, lambda t: t.raw, (args, kwargs))
    out = func(*raw_args, **raw_kwargs)

    def place(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        return OnDevice(value) if there and isinstance(value, torch.Tensor) and id(value) not in host else value

    return tree_map(place, out)


class Module:
    """What PyTorch asks the vendor's package for."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def install() -> None:
    """Make the device the machine's accelerator."""
    _setup_privateuseone_for_python_backend(NAME, Module())
    library = torch.library.Library("aten", "IMPL")
    aten = torch.ops.aten

    def empty(size: Any, **options: Any) -> torch.Tensor:
        return compute(aten.empty.memory_format, (size,), options)

    def empty_strided(size: Any, stride: Any, **options: Any) -> torch.Tensor:
        return compute(aten.empty_strided.default, (size, stride), options)

    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")

    def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        raw = (t.raw if isinstance(t, OnDevice) else t for t in (target, source))
        next(raw).copy_(next(raw))
        return target

    library.impl("_copy_from", copy_from, "PrivateUse1")

    def connect(store: Any, rank: int, size: int, timeout: Any) -> Any:
        return dist.ProcessGroupGloo(store, rank, size, timeout)

    dist.Backend.register_backend(f"{NAME}ccl", connect, devices=[NAME])
    globals()["_library"] = library  # it lives as long as the process


class Event:
    """Nothing is left to wait for: the CPU has done it."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == NAME

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class NoOne:
    """A reporter that shows nothing."""

    def __call__(self, stage: str, done: float, total: float, note: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def main() -> None:
    install()
    from armillary.corpus import Corpus
    from armillary.launch import launch, launched
    from armillary.recipe import LargeRun
    from armillary.train import InterruptedRunError, default_device, train_run

    assert default_device() == torch.device(NAME)
    large, folder = LargeRun.model_validate_json(sys.argv[2]), Path(sys.argv[3])
    if launched():
        torch.Event = Event
        torch.Tensor.pin_memory = lambda tensor: tensor
        launch(large, folder, reporter=NoOne)
        return
    steps: list[int] = []
    try:
        train_run(
            large.run, Corpus.open(Path(large.corpus)), folder, progress=steps.append, stop=lambda: len(steps) == 6
        )
    except InterruptedRunError:
        train_run(large.run, Corpus.open(Path(large.corpus)), folder)


if __name__ == "__main__":
    main()
