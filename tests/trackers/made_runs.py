"""Folders of runs as the trainer leaves them, without training, and what each tracker's own reader finds."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from armillary.files import write_json
from armillary.goodput import Event, write_events
from armillary.recipe import MixturePhase, ModelShape, OptimizerSpec, RunResult, RunSpec, Validation, write_result

HOSTILE = (
    "<script>alert(1)</script>",
    "a/b",
    "..\\..\\up",
    "中文 域",
    "=1+1",
    "50%_{x}",
    "'; DROP TABLE runs;--",
    "x\u202ey",
)
BEGAN_S = 1_700_000_000.0

Series = dict[str, dict[int, float]]


def made_spec(steps: int = 60, domains: tuple[str, ...] = ("sky", "sea"), seed: int = 1, depth: int = 1) -> RunSpec:
    """A small run."""
    shape = ModelShape(n_layers=depth, d_model=16, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32, vocab_size=300)
    return RunSpec(
        corpus="0" * 16,
        model=shape,
        context_length=16,
        batch_sequences=4,
        steps=steps,
        mixture=(MixturePhase(start_step=0, weights={name: 1 / len(domains) for name in domains}),),
        optimizer=OptimizerSpec(lr=1e-2),
        seed=seed,
        validation=Validation(every=20, windows=4),
    )


def made_rows(spec: RunSpec, domains: tuple[str, ...], begin: int, end: int) -> list[dict[str, float]]:
    """The rows after ``begin`` steps up to ``end``."""
    found = []
    for step in range(begin + 1, end + 1):
        row = {"step": step, "tokens": spec.tokens_after(step), "lr": spec.lr(step - 1)}
        row |= {"loss": 2 + math.exp(-step / 50), "grad_norm": 1 + math.sin(step)}
        if spec.validation.due(step, spec.steps):
            for number, domain in enumerate(domains):
                row[f"validation/{domain}/loss"] = 2.5 + number + 1 / step
        found.append(row)
    return found


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """A Parquet file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)


def made_run(
    folder: Path, spec: RunSpec | None = None, domains: tuple[str, ...] = ("sky", "sea"), until: int | None = None
) -> RunSpec:
    """The folder of a run that is done, or of one that has written its rows up to ``until``."""
    spec = spec or made_spec(domains=domains)
    reached = spec.steps if until is None else until
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spec.json", spec.model_dump(mode="json"))
    events = [Event(time_s=BEGAN_S, run=spec.id, kind="start", step=0)]
    events += [
        Event(time_s=BEGAN_S + step, run=spec.id, kind="progress", step=step, duration_s=float(min(20, step)))
        for step in range(20, reached + 1, 20)
    ]
    write_events(folder / "events.jsonl", events)
    if until is None:
        write_rows(folder / "metrics.parquet", made_rows(spec, domains, 0, spec.steps))
        (folder / "model.safetensors").write_bytes(b"no weights")
        losses = dict.fromkeys(domains, 2.5)
        write_result(folder, RunResult(spec.id, losses, losses, 2.1, spec.tokens, spec.flops, {}, 1.0))
    else:
        middle = reached // 2
        write_rows(folder / "metrics" / "rows-1.parquet", made_rows(spec, domains, 0, middle))
        write_rows(folder / "metrics" / "live.parquet", made_rows(spec, domains, max(0, middle - 3), reached))
    return spec


def once(pairs: list[tuple[int, float]], name: str) -> dict[int, float]:
    """Values by step; a step that is there twice is an error."""
    doubled = [step for step, count in Counter(step for step, _ in pairs).items() if count > 1]
    assert not doubled, f"{name}: {doubled}"
    return dict(pairs)


def in_tensorboard(place: Path, project: str, run: str) -> Series:
    """By TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place / run), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: once([(event.step, event.value) for event in found.Scalars(tag)], tag) for tag in found.Tags()["scalars"]
    }


def in_mlflow(place: Path, project: str, run: str) -> Series:
    """By MLflow's client."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place}")
    experiment = client.get_experiment_by_name(project)
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`armillary.run` = '{run}'")
    names = list(found.data.metrics)
    return {
        name: once([(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)], name)
        for name in names
    }


def in_wandb(place: Path, project: str, run: str) -> Series:
    """From the whole records of the offline files, by the package's own reader of one."""
    from armillary.trackers.writers.frames import TornError, wandb_records
    from armillary.trackers.writers.wandb import offline_files, record_of, step_of

    def whole(path: Path) -> Iterator[bytes]:
        with contextlib.suppress(TornError):  # by a full disk
            yield from wandb_records(path.read_bytes())

    pairs: dict[str, list[tuple[int, float]]] = {}
    for path in offline_files(place, run):
        for content in whole(path):
            record = record_of(content)
            if record.WhichOneof("record_type") == "run":
                assert (record.run.run_id, record.run.project) == (run, project)
            if record.WhichOneof("record_type") == "history":
                for item in record.history.item:
                    name = ".".join(item.nested_key) or item.key
                    if not name.startswith("_"):
                        pairs.setdefault(name, []).append((step_of(record.history), json.loads(item.value_json)))
    return {name: once(values, name) for name, values in pairs.items()}


def in_trackio(place: Path, project: str, run: str) -> Series:
    """From the SQLite file that trackio's dashboard reads."""
    pairs: dict[str, list[tuple[int, float]]] = {}
    with sqlite3.connect(next(place.glob(f"{project}*.db"))) as db:
        for step, text in db.execute("select step, metrics from metrics where run_id = ?", (run,)):
            for name, value in json.loads(text).items():
                pairs.setdefault(name, []).append((step, value))
    return {name: once(values, name) for name, values in pairs.items()}


READERS: dict[str, Callable[[Path, str, str], Series]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "wandb": in_wandb,
    "trackio": in_trackio,
}
