"""Snapshots of a run on several machines: each keeps the files of its own ranks and of those of the machine before it.

So the ranks of a lost machine find their files on the next one. If that one is lost too, the run resumes from a
checkpoint on disk. The files travel over the group of the writing threads while training continues. After a restart,
the machines compare what they hold. A step counts if each of its files is somewhere. Every machine receives only the
files that its ranks read.

Trade-off: the memory of each machine holds twice the files of its ranks, for two steps.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from armillary.files import write_file
from armillary.recipe import ArmillaryError
from armillary.train.checkpoint.manifest import (
    MANIFEST,
    METRICS,
    CheckpointReader,
    Progress,
    checkpoint_steps,
    commit,
    read_manifest,
    write_manifest,
)
from armillary.train.checkpoint.pieces import Written
from armillary.train.checkpoint.retention import RetentionPolicy, thin_out
from armillary.train.checkpoint.saver import AsyncSaver, Saved, common_problem
from armillary.train.world import Ranks, together
from armillary.train.writing import reason, writing


class Peers:
    """The machines of a run and their folders of snapshots; ``names`` has the machine of each rank.

    Every rank makes the same calls.
    """

    def __init__(self, world: Ranks, memory: Path, names: Sequence[str]) -> None:
        self.world, self.memory = world, memory
        self.machines = [[rank for rank, own in enumerate(names) if own == name] for name in dict.fromkeys(names)]
        self._own = next(number for number, ranks in enumerate(self.machines) if world.rank in ranks)
        self._held: dict[int, list[set[str]]] = {}  # by step: the files that each machine has

    @property
    def ranks(self) -> list[int]:
        """The ranks on this machine; the first of them writes what they share."""
        return self.machines[self._own]

    @property
    def first(self) -> bool:
        """Whether this rank is the first of its machine."""
        return self.world.rank == self.ranks[0]

    def keeper(self, rank: int) -> int:
        """The rank on the next machine that keeps a copy of the file of ``rank``."""
        number = next(number for number, ranks in enumerate(self.machines) if rank in ranks)
        following = self.machines[(number + 1) % len(self.machines)]
        return following[self.machines[number].index(rank) % len(following)]

    def steps(self) -> list[int]:
        """The steps whose files are all somewhere, ascending."""
        found = self.world.collect(_held(self.memory) if self.first else None)
        of_machines = [found[ranks[0]] for ranks in self.machines]
        self._held = {}
        for step in sorted({step for held in of_machines for step in held}):
            files = [held.get(step, (0, frozenset()))[1] for held in of_machines]
            total = max(held.get(step, (0, frozenset()))[0] for held in of_machines)
            if len(frozenset().union(*files)) == total:
                self._held[step] = [set(one) for one in files]
        return list(self._held)

    def fetch(self, step: int, needed: Callable[[CheckpointReader], set[str]]) -> set[str]:
        """Bring to each machine what its ranks read of a step in ``steps()``; returns the files of this machine.

        ``needed`` returns the files that this rank reads. A damaged copy fails its checksum later.

        Raises:
            DamagedFileError: the manifest is damaged; on all ranks.
            ArmillaryError: a file cannot be written, because the memory is full; on all ranks.
        """
        folder, held = self.memory / f"step-{step}", self._held[step]
        source = next(ranks[0] for ranks, files in zip(self.machines, held, strict=True) if files)
        text = [_read(folder / MANIFEST) if self.world.rank == source else None]
        dist.broadcast_object_list(text, src=source, group=self.world.group)
        together(self.world, partial(self._write, folder / MANIFEST, text[0]))
        manifest = together(self.world, partial(read_manifest, folder))
        asked = self.world.collect(needed(CheckpointReader(folder)))
        wanted = [{METRICS}.union(*(asked[rank] for rank in ranks)) for ranks in self.machines]
        sizes = {name: int(file["bytes"]) for name, file in manifest["files"].items()}
        together(self.world, partial(self._move, folder, held, wanted, sizes))
        return wanted[self._own]

    def forget_after(self, step: int) -> None:
        """Remove the snapshots of later steps from this machine, since the run takes these steps again."""
        for later in checkpoint_steps(self.memory) if self.first else ():
            if later > step:
                shutil.rmtree(self.memory / f"step-{later}", ignore_errors=True)

    def _write(self, path: Path, data: bytes | None) -> None:
        if self.first and data is not None and _read(path) != data:
            with writing(path):
                write_file(path, data)

    def _move(self, folder: Path, held: Sequence[set[str]], wanted: Sequence[set[str]], sizes: dict[str, int]) -> None:
        """Send each machine the files that it wants and lacks, one after the other, from a machine that has it."""
        problem: OSError | None = None
        for number, files in enumerate(wanted):
            for name in sorted(files - held[number]):
                sources = [ranks[0] for ranks, own in zip(self.machines, held, strict=True) if name in own]
                source, target = sources[number % len(sources)], self.machines[number][0]
                if self.world.rank == source:
                    send_file(folder / name, sizes[name], target, self.world.group)
                elif self.world.rank == target:
                    problem = receive_file(folder / name, sizes[name], source, self.world.group) or problem
        if problem is not None:
            raise ArmillaryError(f"{folder}: could not be written ({problem.strerror}); free memory there")


class PeerSaver(AsyncSaver):
    """Writes snapshots in the background: each rank to the memory of its machine, and to that of the next one."""

    def __init__(self, peers: Peers, policy: RetentionPolicy) -> None:
        super().__init__(peers.memory, peers.world, policy, "sum64")
        self.peers = peers

    def _commit(self, saved: Saved, mine: Written | str | None, progress: Progress) -> None:
        """Copy the files to the next machine; the first rank of each machine then commits the folder there."""
        found: list[tuple[int, Written | str | None]] = [(saved.step, None)] * self.world.size
        dist.all_gather_object(found, (saved.step, mine), group=self._group)
        saved.problem = common_problem(saved.step, found)
        if saved.problem is not None:  # on all ranks
            return
        written = {rank: part for rank, (_, part) in enumerate(found) if isinstance(part, Written)}
        hidden = self.hidden(saved.step)
        problem = self._exchange(hidden, written)
        documents: list[dict[str, bytes]] = [{}]
        if self.world.rank == 0:
            try:
                write_manifest(hidden, written.values(), progress)
                documents = [{name: (hidden / name).read_bytes() for name in (METRICS, MANIFEST)}]
            except Exception as error:
                problem = f"the manifest could not be written ({reason(error)})"
        dist.broadcast_object_list(documents, src=0, group=self._group)
        if self.peers.first and self.world.rank != 0:
            try:
                for name, data in documents[0].items():
                    write_file(hidden / name, data)
            except OSError as error:
                problem = f"rank {self.world.rank} could not write the manifest ({reason(error)})"
        problems: list[str | None] = [None] * self.world.size
        dist.all_gather_object(problems, problem, group=self._group)
        saved.problem = next((one for one in problems if one is not None), None)
        if saved.problem is None and self.peers.first:
            commit(hidden, self.folder, saved.step)
            thin_out(self.folder, progress, self.policy)
        saved.data["bytes"] = sum(part.bytes for part in written.values())

    def _exchange(self, hidden: Path, written: dict[int, Written]) -> str | None:
        """Send this rank's file to its keeper, and receive those that this rank keeps; returns the problem, if any."""
        problem: OSError | None = None
        rank, jobs = self.world.rank, []
        if rank in written:
            path = hidden / written[rank].name
            data = _bytes(path, written[rank].bytes)
            jobs.append(dist.isend(data, self.peers.keeper(rank), group=self._group))
        for other, part in written.items():
            if self.peers.keeper(other) == rank:
                problem = receive_file(hidden / part.name, part.bytes, other, self._group) or problem
        for job in jobs:
            assert job is not None  # this rank is in the group
            job.wait()
        return None if problem is None else f"rank {rank} could not keep a copy ({reason(problem)})"


def send_file(path: Path, size: int, target: int, group: dist.ProcessGroup) -> None:
    """Send ``size`` bytes of a file to another rank; zeros for what the file lacks."""
    dist.send(_bytes(path, size), target, group=group)


def receive_file(path: Path, size: int, source: int, group: dist.ProcessGroup) -> OSError | None:
    """Receive a file; returns the error if it cannot be written. The other ranks need not wait for the cause."""
    data = torch.empty(size, dtype=torch.uint8)
    dist.recv(data, source, group=group)
    try:
        data.numpy().tofile(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        return error
    return None


def _bytes(path: Path, size: int) -> torch.Tensor:
    """The first ``size`` bytes of a file, with zeros for what it lacks: then its checksum does not match."""
    data = torch.zeros(size, dtype=torch.uint8)
    with contextlib.suppress(OSError):
        found = torch.from_numpy(np.fromfile(path, np.uint8, size))
        data[: len(found)] = found
    return data


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def _held(memory: Path) -> dict[int, tuple[int, frozenset[str]]]:
    """By step: how many files the snapshot has on all machines, and which of them this machine has."""
    held: dict[int, tuple[int, frozenset[str]]] = {}
    steps: list[int] = []
    with contextlib.suppress(ArmillaryError, OSError):
        steps = checkpoint_steps(memory)
    for step in steps:
        with contextlib.suppress(ArmillaryError, OSError, KeyError, TypeError, AttributeError):
            names = read_manifest(memory / f"step-{step}")["files"].keys()
            held[step] = len(names), frozenset(name for name in names if (memory / f"step-{step}" / name).is_file())
    return held
