"""Writes the checkpoints of a run: at once in one process, or in the background of all ranks.

``AsyncSaver`` copies a rank's pieces into buffers on the host, and a thread writes them. Training waits only for the
copy; an accelerator copies into pinned memory without the CPU. The next checkpoint waits for the one before. The ranks'
threads have a separate process group. Rank 0 commits the checkpoint once every rank has flushed its files. If a rank
fails, the previous checkpoint stays, and rank 0 reports the failure.

Trade-off: the buffers take as much host memory as the pieces that a rank writes.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from armillary.files import HOST, aside
from armillary.recipe import ArmillaryError
from armillary.resilience import wait_limit
from armillary.train.checkpoint.manifest import Progress, complete
from armillary.train.checkpoint.pieces import Piece, Written, join_pieces, write_pieces
from armillary.train.checkpoint.retention import RetentionPolicy, thin_out
from armillary.train.world import Ranks, set_timeout
from armillary.train.writing import reason, writing


@dataclass
class Saved:
    """The outcome of writing a checkpoint: the problem if it failed, and what else is known about it."""

    step: int
    problem: str | None = None
    data: dict[str, float] = field(default_factory=dict)


class Saver(Protocol):
    """Writes checkpoints."""

    def save(self, pieces: Mapping[str, Piece], progress: Progress) -> None:
        """Begin to write the checkpoint of the last step; return when training may continue."""

    def finished(self) -> list[Saved]:
        """The checkpoints finished since the last call."""

    def wait(self) -> None:
        """Wait until all checkpoints are written."""


class SyncSaver:
    """Writes at once; errors are raised."""

    def __init__(self, folder: Path, policy: RetentionPolicy) -> None:
        self.folder, self.policy = folder, policy
        self._saved: list[Saved] = []

    def save(self, pieces: Mapping[str, Piece], progress: Progress) -> None:
        """Write the checkpoint of the last step."""
        save_checkpoint(self.folder, pieces, progress, self.policy)
        self._saved.append(Saved(progress.step))

    def finished(self) -> list[Saved]:
        """The checkpoints finished since the last call."""
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> None:
        """Return at once, since every write is finished."""


class AsyncSaver:
    """Writes in the background of all ranks of ``world``; every rank must make the same calls.

    ``checksum`` is the name of that of the ranks' files, in ``CHECKSUMS``.
    """

    def __init__(self, folder: Path, world: Ranks, policy: RetentionPolicy, checksum: str = "sha256") -> None:
        self.folder, self.world, self.policy, self.checksum = folder, world, policy, checksum
        self._group = world.background_group()  # used only by the threads
        self._longest_s = 0.0
        # One temporary name for the folders of this attempt, like that of ``aside`` for one process
        self._token = world.share(f"{HOST}.{uuid.uuid4().hex[:12]}")
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._saved: list[Saved] = []

    def prepare(self, pieces: Mapping[str, Piece]) -> None:
        """Allocate the host's memory for ``pieces`` in the background, if they are on an accelerator.

        Pinning takes about one second per GB; otherwise the first checkpoint would block training for this time.
        """
        if any(piece.values.device.type != "cpu" for piece in pieces.values()):
            self._thread = threading.Thread(target=lambda: [self._buffer(*item) for item in pieces.items()])
            self._thread.start()

    def save(self, pieces: Mapping[str, Piece], progress: Progress) -> None:
        """Copy ``pieces``; a thread writes them while training continues."""
        self.wait()
        copied, arrived = self._copy(pieces)
        self._thread = threading.Thread(target=self._write, args=(Saved(progress.step), copied, progress, arrived))
        self._thread.start()

    def finished(self) -> list[Saved]:
        """The checkpoints finished since the last call; only rank 0 has the failures of all ranks."""
        if self._thread is not None and self._thread.is_alive():
            return []
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> None:
        """Wait until all checkpoints are written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def save_weights(self, pieces: Mapping[str, Piece], path: Path) -> None:
        """Assemble the ``pieces`` of all ranks into one safetensors file of whole tensors; all ranks wait for it.

        Raises:
            ArmillaryError: a rank could not write its part; on all ranks.
        """
        self.wait()
        folder = path.with_name(f".{path.name}.{self._token}")
        problem = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mine = write_pieces(folder, self.world.rank, pieces) if pieces else None
        except Exception as error:
            mine, problem = None, f"rank {self.world.rank} could not write its part ({reason(error)})"
        parts = self.world.collect((mine, problem))
        if self.world.rank == 0 and all(text is None for _, text in parts):
            try:
                join_pieces([file for file, _ in parts if file is not None], folder, path)
            except Exception as error:
                problem = f"the parts could not be assembled ({reason(error)})"
        if self.world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        problem = next((text for text in [*(text for _, text in parts), self.world.share(problem)] if text), None)
        if problem is not None:
            raise ArmillaryError(f"{path}: the weights could not be written: {problem}; start it again to resume")

    def _copy(self, pieces: Mapping[str, Piece]) -> tuple[dict[str, Piece], torch.Event | None]:
        """``pieces`` on the host, and the event that marks the end of the copy."""
        copied, device = {}, torch.device("cpu")
        for name, piece in pieces.items():
            device = piece.values.device if piece.values.device.type != "cpu" else device
            copied[name] = Piece(
                self._buffer(name, piece).copy_(piece.values, non_blocking=True), piece.size, piece.offset
            )
        if device.type == "cpu":
            return copied, None
        # The next optimizer step is queued on the device behind the copies, so training need not wait for them.
        arrived = torch.Event(device)
        arrived.record()
        return copied, arrived

    def _buffer(self, name: str, piece: Piece) -> Tensor:
        if name not in self._buffers:
            pinned = piece.values.device.type != "cpu"
            self._buffers[name] = torch.empty_like(piece.values, device="cpu", pin_memory=pinned)
        return self._buffers[name]

    def _write(self, saved: Saved, pieces: dict[str, Piece], progress: Progress, arrived: torch.Event | None) -> None:
        begin = time.perf_counter()
        hidden = self.hidden(saved.step)
        mine: Written | str | None = None
        try:
            if arrived is not None:
                arrived.synchronize()
            hidden.mkdir(parents=True, exist_ok=True)
            if pieces:
                mine = write_pieces(hidden, self.world.rank, pieces, self.checksum)
        except Exception as error:
            mine = f"rank {self.world.rank} could not write its part ({reason(error)})"
        try:
            self._commit(saved, mine, progress)
        except Exception as error:
            saved.problem = f"it could not be completed ({reason(error)})"
        saved.data["written_s"] = time.perf_counter() - begin
        self._longest_s = max(self._longest_s, saved.data["written_s"])
        set_timeout(self._group, wait_limit(self._longest_s))
        if saved.problem is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        self._saved.append(saved)

    def hidden(self, step: int) -> Path:
        """The folder of an unfinished checkpoint."""
        return self.folder / f".step-{step}.{self._token}"

    def _commit(self, saved: Saved, mine: Written | str | None, progress: Progress) -> None:
        """Rank 0 commits the checkpoint once every rank has written its part."""
        found: list[tuple[int, Written | str | None]] = [(saved.step, None)] * self.world.size
        dist.gather_object((saved.step, mine), found if self.world.rank == 0 else None, dst=0, group=self._group)
        if self.world.rank != 0:
            return
        written = [part for _, part in found if isinstance(part, Written)]
        saved.problem = common_problem(saved.step, found)
        if saved.problem is None:
            complete(self.hidden(saved.step), self.folder, written, progress)
            thin_out(self.folder, progress, self.policy)
        saved.data["bytes"] = sum(file.bytes for file in written)


def common_problem(step: int, found: Sequence[tuple[int, Written | str | None]]) -> str | None:
    """Why the parts that the ranks wrote (each with its step) are not a checkpoint of ``step``; None if they are."""
    if any(other != step for other, _ in found):
        return f"ranks wrote different steps: {', '.join(str(other) for other, _ in found)}"
    return next((part for _, part in found if isinstance(part, str)), None)


def save_checkpoint(folder: Path, pieces: Mapping[str, Piece], progress: Progress, policy: RetentionPolicy) -> None:
    """Write ``folder/step-N`` by one process, and ``thin_out``.

    Raises:
        ArmillaryError: it could not be written; the earlier checkpoints are unchanged.
    """
    hidden = aside(folder / f"step-{progress.step}")
    try:
        with writing(folder / f"step-{progress.step}"):
            hidden.mkdir(parents=True)
            complete(hidden, folder, [write_pieces(hidden, 0, pieces)], progress)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    thin_out(folder, progress, policy)
