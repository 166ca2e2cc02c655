"""Reads runs from event files of TensorBoard: scalars, hyperparameters, and the settings that an export wrote.

A folder with event files is a run. PyTorch's ``add_hparams`` writes a separate folder below; its settings belong to
the run above.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from armillary.trackers.importing.found import FoundRun, files_below
from armillary.trackers.writers import flat
from armillary.trackers.writers.frames import TornError, tf_records
from armillary.trackers.writers.tensorboard import event_of

LACKS = "no event files of TensorBoard (*tfevents*)"
_CONFIG = "armillary/config/text_summary"


def read(path: Path) -> tuple[list[FoundRun], list[str]]:
    """The runs in an event file or a folder of them; and what could not be read."""
    runs: dict[Path, FoundRun] = {}
    notes: list[str] = []
    for file in files_below(path, "*tfevents*", notes):
        folder = file.parent
        name = folder.name if path in (file, folder) else folder.relative_to(path).as_posix()
        _read_events(file, runs.setdefault(folder, FoundRun(name)), notes)
    for folder in sorted(runs, key=lambda one: len(one.parts), reverse=True):
        above = runs.get(folder.parent)
        if above is not None and runs[folder].config and not above.config:
            above.config.update(runs[folder].config)
            del runs[folder]
    return list(runs.values()), notes


def _read_events(file: Path, run: FoundRun, notes: list[str]) -> None:
    count = 0
    try:
        for content, _ in tf_records(file.read_bytes()):
            event = event_of(content)
            count += 1
            for value in event.summary.value:
                _take(run, event.step, value)
    except (TornError, ValueError) as error:
        reason = error if isinstance(error, TornError) else "a record is not an event"
        notes.append(f"{file}: torn ({reason}); {count} events before it were read")
    except OSError as error:
        notes.append(f"{file}: cannot be read ({error.strerror})")


def _take(run: FoundRun, step: int, value: Any) -> None:
    if value.metadata.plugin_data.plugin_name == "hparams":
        run.config.update(_hyperparameters(value.metadata.plugin_data.content))
        return
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        number = value.simple_value
    elif kind == "tensor" and value.tag == _CONFIG:
        run.config.update(_settings(value.tensor))
        return
    elif kind == "tensor":
        number = _scalar(value.tensor)
    else:
        return
    run.measure(value.tag, step, number)


def _scalar(tensor: Any) -> float | None:
    """The number in a tensor of one; None for any other."""
    if any(dim.size != 1 for dim in tensor.tensor_shape.dim):  # before a tensor of a claimed size is made
        return None
    try:
        array = np.asarray(tensor_util.make_ndarray(tensor))
    except (TypeError, ValueError):  # a kind that this package does not read
        return None
    return float(array.reshape(())) if array.size == 1 and array.dtype.kind in "fiu" else None


def _hyperparameters(content: bytes) -> dict[str, Any]:
    try:
        found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    except DecodeError:
        return {}
    kinds = {name: one.WhichOneof("kind") for name, one in found.items()}
    plain = ("number_value", "string_value", "bool_value")
    return {name: getattr(one, kinds[name]) for name, one in found.items() if kinds[name] in plain}


def _settings(tensor: Any) -> dict[str, Any]:
    try:
        content = json.loads(tensor.string_val[0])
    except (ValueError, IndexError, RecursionError):
        return {}
    return flat(content) if isinstance(content, dict) else {}
