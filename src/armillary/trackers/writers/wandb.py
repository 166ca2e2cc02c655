"""Weights & Biases: a run with the id of the Armillary run, offline in files for ``wandb sync``, or online.

Offline, each attempt that has something to add writes a separate folder ``offline-run-…`` with the same run id, and
``wandb sync`` joins them. What these files hold says where to continue. All metrics of a step are one record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

from armillary.trackers.destination import Destination
from armillary.trackers.source import About, Row, State
from armillary.trackers.writers.frames import TornError, wandb_records
from armillary.trackers.writers.writer import Writer


class WandbWriter(Writer):
    """A run of a project in ``place/wandb``. It begins with the first row, so that nothing new leaves no new folder."""

    def __init__(self, about: About, where: Destination) -> None:
        self._about, self._where = about, where
        self._run: Any = None
        self.last = 0
        if where.online:
            self._run = self._begin()
            self.last = max(0, int(self._run.starting_step) - 1)
        else:
            for path in offline_files(Path(where.place), about.run):
                self.last = max(self.last, last_step(path))

    def _begin(self) -> Any:
        # Neither the machine, nor its repositories, nor what is printed belongs to the metrics of a run.
        settings = wandb.Settings(
            mode="online" if self._where.online else "offline",
            console="off",
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        Path(self._where.place).mkdir(parents=True, exist_ok=True)
        self._await_a_new_name()
        return wandb.init(
            dir=self._where.place,
            project=self._where.project,
            entity=self._where.entity,
            id=self._about.run,
            name=self._about.name,
            config=self._about.config,
            tags=sorted(set(self._about.tags.values())) or None,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def _await_a_new_name(self) -> None:
        """Wait until no attempt of this second is there: folders are named by the second, and would be overwritten."""
        names = {path.parent.name for path in offline_files(Path(self._where.place), self._about.run)}
        while any(
            f"offline-run-{time.strftime('%Y%m%d_%H%M%S', clock())}-{self._about.run}" in names
            for clock in (time.localtime, time.gmtime)
        ):
            time.sleep(0.05)

    def write(self, rows: Sequence[Row]) -> None:
        """Log a record per row."""
        if self._run is None:
            self._run = self._begin()
        for row in rows:
            self._run.log({**row.values, "_timestamp": row.time_s}, step=row.step, commit=True)
        self.last = rows[-1].step

    def close(self, state: State) -> None:
        """End the tracker's process of the run, which writes what is left.

        Raises:
            OSError: offline, not all of it is in the files; the package only logs that a disk is full.
        """
        if self._run is None:
            return
        self._run.finish(exit_code=0 if state == "done" else 1)
        if not self._where.online:
            stored = max(map(last_step, offline_files(Path(self._where.place), self._about.run)), default=0)
            if stored < self.last:
                raise OSError(f"{self._where.place}: steps after {stored} could not be written; is the disk full?")


def offline_files(place: Path, run: str) -> list[Path]:
    """The files of a run in a folder of offline runs, the oldest first."""
    return sorted(place.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb"))


def last_step(path: Path) -> int:
    """The last step in a file; what is torn does not count."""
    last = 0
    try:
        for content in wandb_records(path.read_bytes()):
            record = record_of(content)
            if record.WhichOneof("record_type") == "history":
                last = max(last, step_of(record.history))
    except (TornError, ValueError):
        pass
    return last


def record_of(content: bytes) -> Any:
    """A record of a ``.wandb`` file; ValueError if it is none."""
    try:
        return wandb_internal_pb2.Record.FromString(content)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise ValueError(str(error)) from error


def step_of(history: Any) -> int:
    """The step of a record of metrics; 0 if it has none."""
    for item in history.item:
        if "_step" in (item.key, *item.nested_key):
            return int(json.loads(item.value_json))
    return int(history.step.num)
