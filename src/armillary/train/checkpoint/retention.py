"""Decides which checkpoints of a run are written and kept, and removes the others."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from armillary.files import HOST, aside
from armillary.recipe import ArmillaryError
from armillary.train.checkpoint.manifest import Progress, checkpoint_steps, read_manifest

_ABANDONED_S = 3600.0
_HIDDEN = re.compile(r"\.step-([0-9]+)\.(.+)")


class RetentionPolicy(Protocol):
    """When checkpoints are written and which are kept, according to ``recipe.Checkpoints``."""

    @property
    def every_s(self) -> float:
        """Seconds between two checkpoints."""

    @property
    def keep_last(self) -> int:
        """The number of most recent checkpoints that are kept."""

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after ``step`` steps; this does not depend on the clock."""

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is never removed."""


@dataclass(frozen=True)
class Branches:
    """The policy of a study's run: a checkpoint every ``every_s`` seconds, and one at each step of a branch."""

    keep: tuple[int, ...]
    every_s: float
    keep_last: int = 2

    def due(self, step: int) -> bool:
        """Whether another run branches from ``step``."""
        return step in self.keep

    def stays(self, step: int) -> bool:
        """Whether another run branches from ``step``."""
        return step in self.keep


def thin_out(folder: Path, progress: Progress, policy: RetentionPolicy) -> None:
    """Remove all checkpoints except the last ``keep_last`` and those that are always kept."""
    step, keep_last = progress.step, policy.keep_last
    removable = [s for s in checkpoint_steps(folder) if s < step and not policy.stays(s)]
    recent = removable[len(removable) - keep_last + 1 :] if keep_last > 1 else []
    remove_checkpoints(folder, progress.spec.id, lambda s: s >= step or s in recent or policy.stays(s), step)


def remove_checkpoints(folder: Path, run: str, stays: Callable[[int], bool], written: float = math.inf) -> None:
    """Remove the checkpoints of ``run`` except the kept steps, and incomplete files of killed processes.

    Incomplete files of a step after ``written`` stay, because another rank may have begun the next checkpoint.
    Incomplete files of another machine are removed only when they are old: that machine may still run, disconnected and
    without its lock. A checkpoint of another run, of a newer format or without a readable manifest is left alone.
    """
    for step in checkpoint_steps(folder):
        path = folder / f"step-{step}"
        if not stays(step) and _removable(path, run):
            hidden = aside(path)  # so that a kill does not leave half a checkpoint under this name
            with contextlib.suppress(OSError):
                path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
    for path in folder.glob(".step-*"):
        name = _HIDDEN.fullmatch(path.name)
        if name is None or int(name[1]) > written:
            continue
        if name[2].startswith(f"{HOST}.") or _age_s(path) > _ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)


def _removable(path: Path, run: str) -> bool:
    try:
        return bool(read_manifest(path).get("run", run) == run)
    except (ArmillaryError, OSError):
        return False


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its writer has just finished
        return 0.0
