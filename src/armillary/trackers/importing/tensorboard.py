"""Reads runs from event files of TensorBoard: scalars, hyperparameters, and the settings that an export wrote.

A folder with event files is a run. PyTorch's ``add_hparams`` writes a folder of its own below; its settings belong to
the run above.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
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
    for file in files_below(path, "*tfevents*"):
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
        said = error if isinstance(error, TornError) else "a record is not an event"
        notes.append(f"{file}: torn ({said}); {count} events before it were read")
    except OSError as error:
        notes.append(f"{file}: cannot be read ({error.strerror})")


def _take(run: FoundRun, step: int, value: Any) -> None:
    if value.metadata.plugin_data.plugin_name == "hparams":
        data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for name, one in data.session_start_info.hparams.items():
            run.config[name] = getattr(one, one.WhichOneof("kind") or "string_value")
        return
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        number = value.simple_value
    elif kind == "tensor" and value.tag == _CONFIG:
        run.config.update(_settings(value.tensor))
        return
    elif kind == "tensor":
        array = np.asarray(_array(value.tensor))
        if array.size != 1 or array.dtype.kind not in "fiu":
            return
        number = float(array.reshape(()))
    else:
        return
    if math.isfinite(number):
        run.measure(value.tag, step, float(number))


def _array(tensor: Any) -> Any:
    try:
        return tensor_util.make_ndarray(tensor)
    except (TypeError, ValueError):  # a kind that this package does not read
        return ()


def _settings(tensor: Any) -> dict[str, Any]:
    try:
        content = json.loads(tensor.string_val[0])
    except (ValueError, IndexError, RecursionError):
        return {}
    return flat(content) if isinstance(content, dict) else {}
