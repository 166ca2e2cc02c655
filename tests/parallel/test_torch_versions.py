"""What differs between the versions of PyTorch that the package runs with, 2.11 to 2.13."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from armillary.parallel import collectives
from armillary.parallel.pipeline import check_schedule
from armillary.recipe import Layout, UsageError

OLD = {"all_gather_single": "all_gather_tensor", "reduce_scatter_single": "reduce_scatter_tensor"}


@pytest.fixture
def group() -> Iterator[Any]:
    """A group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture(params=["2.12", "2.13"])
def module(request: pytest.FixtureRequest) -> Iterator[tuple[ModuleType, list[str]]]:
    """The room's collectives as this version of PyTorch has them, and the names of those that were called."""
    called: list[str] = []

    def stand_in(name: str, real: Any) -> Any:
        def collective(x: torch.Tensor, *arguments: Any) -> Any:
            assert x.is_contiguous()  # as 2.11 and 2.12 demand
            called.append(name)
            return real(x, *arguments)

        return collective

    with pytest.MonkeyPatch.context() as patch:
        for new, old in OLD.items():
            there, gone = (old, new) if request.param == "2.12" else (new, old)
            real = getattr(functional, new, None) or getattr(functional, old)
            patch.setattr(functional, there, stand_in(there, real), raising=False)
            patch.delattr(functional, gone, raising=False)
        yield importlib.reload(collectives), called
    importlib.reload(collectives)


def test_collectives_are_found_under_either_name(module: tuple[ModuleType, list[str]], group: Any) -> None:
    found, called = module
    x = torch.arange(12.0).reshape(3, 4).t()
    assert not x.is_contiguous()
    assert torch.equal(found.wait_tensor(found.all_gather_single(x, 0, group)), x)
    assert torch.equal(found.wait_tensor(found.reduce_scatter_single(x, "sum", 1, group)), x)
    assert called in ([*OLD], [*OLD.values()])


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cpu", "2.13.0+cu128", "2.14.0"])
def test_a_schedule_that_splits_the_backward_pass_needs_2_13(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    check_schedule(Layout(pp=2, schedule="interleaved", stages_per_rank=2))
    layout = Layout(pp=2, schedule="zero-bubble", stages_per_rank=2)
    if version >= "2.13":
        check_schedule(layout)
    else:
        with pytest.raises(UsageError, match=f"needs PyTorch 2.13, but .*{version[:4]}.* use schedule '1f1b'"):
            check_schedule(layout)
