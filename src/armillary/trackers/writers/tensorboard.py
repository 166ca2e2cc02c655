"""TensorBoard: one folder per run with one event file, to which every attempt appends.

All metrics of a step are one record, so a step is there whole or not at all. A record torn by a kill is cut off before
the next one is written, since readers stop at it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.text import plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from armillary.files import sync
from armillary.trackers.destination import Destination
from armillary.trackers.source import About, Row, State
from armillary.trackers.writers.frames import TornError, tf_records
from armillary.trackers.writers.writer import Writer

FILE = "events.out.tfevents.0.armillary"  # TensorBoard looks for the second and third word
CONFIG = "armillary/config"


class TensorBoardWriter(Writer):
    """Events in ``place/NAME``; values are float32, as TensorBoard's scalars are."""

    def __init__(self, about: About, where: Destination) -> None:
        path = event_file(about, Path(where.place))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last, whole = position(path)
        self._file = open(path, "ab")  # noqa: SIM115 (closed by close)
        if self._file.tell() > whole:
            self._file.truncate(whole)
            self._file.seek(0, os.SEEK_END)
        self._records = RecordWriter(self._file)
        if whole == 0:
            self._records.write(
                event_pb2.Event(wall_time=about.started_s, file_version="brain.Event:2").SerializeToString()
            )
            self._records.write(_config(about).SerializeToString())
            self._file.flush()

    def write(self, rows: Sequence[Row]) -> None:
        """Append a record per row."""
        for row in rows:
            values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in row.values.items()]
            event = event_pb2.Event(wall_time=row.time_s, step=row.step, summary=summary_pb2.Summary(value=values))
            self._records.write(event.SerializeToString())
        self._file.flush()
        self.last = rows[-1].step

    def close(self, state: State) -> None:
        """Bring the file to the disk."""
        self._file.close()
        sync(Path(self._file.name))


def event_file(about: About, place: Path) -> Path:
    """The file of a run: in a folder with its id, after its name if it has one. One under another name is kept."""
    short = f"-{about.run[:8]}"
    known = [
        path for path in place.glob(f"*/{FILE}") if path.parent.name == about.run or path.parent.name.endswith(short)
    ]
    folder = about.run if about.name == about.run else f"{about.name}{short}"
    return min(known, default=place / folder / FILE)


def position(path: Path) -> tuple[int, int]:
    """The last step in a file of this writer, and the length of its whole records in bytes."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0, 0
    ends = [0]
    try:
        # contents are compared from the end only: a crash tears the last ones
        for _, end in tf_records(data, check=False):
            ends.append(end)
    except TornError:
        pass
    while len(ends) > 1:
        try:
            content, _ = next(tf_records(data, ends[-2]))
            event = event_of(content)
        except (TornError, ValueError):
            ends.pop()
            continue
        return event.step, ends[-1]
    return 0, 0


def event_of(content: bytes) -> Any:
    """The event in a record; ValueError if it is none."""
    try:
        return event_pb2.Event.FromString(content)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _config(about: About) -> Any:
    """The settings of a run as a text that TensorBoard shows, and that an import reads."""
    text = json.dumps(about.config, ensure_ascii=False, indent=1)
    plugin = summary_pb2.SummaryMetadata.PluginData(
        plugin_name="text", content=plugin_data_pb2.TextPluginData(version=0).SerializeToString()
    )
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        string_val=[text.encode()],
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
    )
    value = summary_pb2.Summary.Value(
        tag=f"{CONFIG}/text_summary", metadata=summary_pb2.SummaryMetadata(plugin_data=plugin), tensor=tensor
    )
    return event_pb2.Event(wall_time=about.started_s, summary=summary_pb2.Summary(value=[value]))
