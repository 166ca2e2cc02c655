"""A process that trains and is killed at a chosen point: SIGKILL, so that nothing is flushed, closed or cleaned up.

The processes are forked from a server that has imported all there is to import, so that a kill costs a tenth of a
second.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from armillary.corpus import Corpus
from armillary.goodput import EventWriter
from armillary.recipe import RunSpec
from armillary.train import folder, loop, train_run
from armillary.train.checkpoint import manifest, pieces, retention
from armillary.train.engines import SingleDeviceEngine, single
from armillary.train.hooks import validate as validation

_FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def die() -> None:
    """What the kernel does to a process that has used up the memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def process(act: Callable[..., None], *arguments: Any) -> Any:
    """A started process that does ``act``."""
    started = mp.get_context("forkserver").Process(target=act, args=arguments)
    started.start()
    return started


def train(spec: RunSpec, corpus: Path, folder: Path) -> None:
    """Train with a checkpoint after every step."""
    loop.torch.set_num_threads(1)
    train_run(spec, Corpus.open(corpus), folder, checkpoint_every_s=0)


def train_until(point: str, spec: RunSpec, corpus: Path, folder: Path) -> None:
    """Train until the named point of ``POINTS``."""
    POINTS[point]()
    train(spec, corpus, folder)


def train_until_operation(number: int, spec: RunSpec, corpus: Path, folder: Path) -> None:
    """Train until just before the ``number``-th time that a file in ``folder`` is opened, renamed, made or removed."""
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _FILE_OPERATIONS and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                die()

    sys.addaudithook(watch)
    train(spec, corpus, folder)


def train_slowly(spec: RunSpec, corpus: Path, folder: Path) -> None:
    """Train, and hang after step 5."""

    def hang(step: int) -> None:
        if step == 6:
            time.sleep(600)

    train_run(spec, Corpus.open(corpus), folder, checkpoint_every_s=0, progress=hang)


def at(owner: Any, name: str, call: int, act: Callable[..., None] = lambda *_: die()) -> Callable[[], None]:
    """Do ``act`` with the arguments of the ``call``-th call of a function in place of that call."""

    def arm() -> None:
        function = getattr(owner, name)
        left = call

        def watched(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                act(*arguments)
            return function(*arguments, **named)

        setattr(owner, name, watched)

    return arm


_MOVES = ((Path, "rename"), (Path, "replace"), (shutil, "rmtree"))


def at_file(name: str, act: Callable[..., None] = lambda *_: die(), *moves: tuple[Any, str]) -> Callable[[], None]:
    """Do ``act`` before the file or folder of that name (or its beginning) is renamed or removed (or by ``moves``)."""

    def arm() -> None:
        for owner, function_name in moves or _MOVES:
            function = getattr(owner, function_name)

            def watched(path: Path, *arguments: Any, _function: Any = function, **named: Any) -> Any:
                if path.name.startswith(name) and path.exists():
                    act(path)
                return _function(path, *arguments, **named)

            setattr(owner, function_name, watched)

    return arm


def half_a_line(writer: EventWriter, *_: Any) -> None:
    """Hand half an event to the system."""
    os.write(writer._file, b'{"format":1,"time_s":17')
    die()


def half_a_file(_tensors: Any, path: Path) -> None:
    """Leave the first bytes of a weight file."""
    path.write_bytes(b"\x40\x00\x00\x00\x00\x00")
    die()


def half_a_folder(path: Path) -> None:
    """Remove some of the files of a folder."""
    (path / "rank-00000.safetensors").unlink()
    die()


POINTS: dict[str, Callable[[], None]] = {
    "before the specification is written": at(folder, "write_json", 1),
    "before the first event": at(EventWriter, "write", 1),
    "in the first step": at(single, "train_step", 1),
    "between two checkpoints": at(single, "train_step", 5),
    "in the middle of an event": at(EventWriter, "write", 9, half_a_line),
    "in a validation": at(validation, "validate", 2),
    "in the middle of a checkpoint's weights": at(pieces, "save_file", 5, half_a_file),
    "before a checkpoint's checksums": at(manifest, "write_sealed", 4),
    "before a checkpoint is renamed": at_file(".step-6"),
    "before older checkpoints are removed": at(retention, "remove_checkpoints", 5),
    "before a checkpoint is removed": at_file("step-4"),
    "in the middle of removing a checkpoint": at_file(".step-4", half_a_folder, (shutil, "rmtree")),
    "after a checkpoint and before the validation of its step": at(validation, "validate", 1),
    "before the metrics are renamed": at_file(".metrics.parquet"),
    "before the weights are renamed": at_file(".model.safetensors"),
    "after the last checkpoint": at(loop, "write_metrics", 1),
    "after the metrics": at(SingleDeviceEngine, "save_weights", 1),
    "after the weights": at(loop, "write_result", 1),
    "before the result is renamed": at_file(".result.json"),
    "after the result": at(loop, "remove_checkpoints", 1),
}
