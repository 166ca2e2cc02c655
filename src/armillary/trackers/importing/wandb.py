"""Reads runs of Weights & Biases: ``run-ID.wandb`` in the folders of offline and online runs.

Several attempts at a run (the same id) are one run. Where that file is missing, ``files/config.yaml`` and
``files/wandb-summary.json`` have the settings and the last values.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from armillary.trackers.importing.found import FoundRun, files_below
from armillary.trackers.writers import flat
from armillary.trackers.writers.frames import TornError, wandb_records
from armillary.trackers.writers.wandb import record_of, step_of

_NO_STEP = -1
_FOLDER = re.compile(r"^(offline-)?run-\d{8}_\d{6}-")
LACKS = "no run of Weights & Biases (run-ID.wandb, or files/wandb-summary.json)"


def read(path: Path) -> tuple[list[FoundRun], list[str]]:
    """The runs in a file, a run's folder, or a folder of them; and what could not be read."""
    runs: dict[str, FoundRun] = {}
    notes: list[str] = []
    seen: set[Path] = set()
    for file in files_below(path, "*.wandb", notes):
        seen.add(file.parent.resolve())
        _read_log(file, runs, notes)
    if path.is_dir():
        for file in files_below(path, "wandb-summary.json", []):  # its folders are named above
            folder = file.parent.parent if file.parent.name == "files" else file.parent
            if folder.resolve() not in seen:
                _read_summary(file, _FOLDER.sub("", folder.name), runs, notes)
    return list(runs.values()), notes


def _read_log(file: Path, runs: dict[str, FoundRun], notes: list[str]) -> None:
    run = FoundRun(file.stem.removeprefix("run-"))
    known = run.name
    count = 0
    try:
        for content in wandb_records(file.read_bytes()):
            record: Any = record_of(content)
            count += 1
            kind = record.WhichOneof("record_type")
            if kind == "run":
                known = record.run.run_id or known
                run.name = record.run.display_name or known
                _take_config(run, record.run.config.update)
            elif kind == "config":
                _take_config(run, record.config.update)
            elif kind == "history":
                step = _step(record.history)
                for item in record.history.item:
                    _take(run, ".".join(item.nested_key) or item.key, step, item.value_json)
            elif kind == "summary":
                for item in record.summary.update:  # before any step: it counts for what has no history
                    _take(run, ".".join(item.nested_key) or item.key, _NO_STEP, item.value_json)
    except (TornError, ValueError) as error:
        reason = error if isinstance(error, TornError) else "a record is not one of Weights & Biases"
        notes.append(f"{file}: torn ({reason}); {count} records before it were read")
    except OSError as error:
        notes.append(f"{file}: cannot be read ({error.strerror})")
    if known in runs:  # another attempt
        earlier = runs[known]
        earlier.config.update(run.config)
        for name, value in run.last.items():
            earlier.measure(name, run.steps[name], value)
    elif count:
        runs[known] = run


def _take_config(run: FoundRun, updates: Any) -> None:
    for item in updates:
        name = ".".join(item.nested_key) or item.key
        if name.startswith("_wandb"):
            continue
        value = _parsed(item.value_json)
        run.config.update(flat({name: value}))


def _take(run: FoundRun, name: str, step: int, text: str) -> None:
    if not name.startswith("_"):
        run.measure(name, step, _parsed(text))


def _step(history: Any) -> int:
    try:
        return step_of(history)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return _NO_STEP


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_summary(file: Path, run: str, runs: dict[str, FoundRun], notes: list[str]) -> None:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{file}: cannot be read ({error})")
        return
    found = runs.setdefault(run, FoundRun(run))
    step = summary.get("_step") if isinstance(summary, dict) else None
    for name, value in flat(summary if isinstance(summary, dict) else {}).items():
        if not name.startswith("_"):
            found.measure(name, step if isinstance(step, int) else _NO_STEP, value)
    path = file.with_name("config.yaml")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Plain) if path.is_file() else {}
        for name, value in (content if isinstance(content, dict) else {}).items():
            if not str(name).startswith(("_wandb", "wandb_version")):
                inner = value["value"] if isinstance(value, dict) and "value" in value else value
                found.config.update(flat({str(name): inner}))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        notes.append(f"{path}: cannot be read ({' '.join(str(error).split())})")


class _Plain(yaml.SafeLoader):
    """YAML without aliases, which Weights & Biases does not write and which may stand for endless data."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)
