"""Every tracker gets each step of a run once, whatever happens between two portions; read back by its own package."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_runs import HOSTILE, READERS, made_rows, made_run, made_spec, write_rows

from armillary.recipe import BusyError, DamagedFileError, metric_files
from armillary.trackers import Destination, RunFiles, export_runs, run_in
from armillary.trackers.mirror import Mirror, TrackerError, described

SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "mlflow-pass-1234567",
    "MLFLOW_TRACKING_TOKEN": "mlflow-token-1234567",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_secretsecretsecret",
}


def tracker(name: str, *marks: Any) -> Any:
    package = importlib.util.find_spec(name)
    skip = pytest.mark.skipif(package is None, reason=f"pip install 'armillary[{name}]'")
    return pytest.param(name, marks=[skip, *marks], id=name)


# MLflow makes its tables and Weights & Biases starts a process: seconds each
TRACKERS = [tracker("tensorboard"), *(tracker(name, pytest.mark.slow) for name in ("mlflow", "wandb", "trackio"))]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A place per tracker for all tests: trackio reads its folder once, and MLflow's tables take seconds to make."""
    folder = tmp_path_factory.mktemp("trackers")
    return {name: folder / (f"{name}.db" if name == "mlflow" else name) for name in READERS}


def destination(name: str, places: dict[str, Path]) -> Destination:
    place = places[name]
    return Destination(name, f"sqlite:///{place}" if name == "mlflow" else str(place), "lab")


def synced(folder: Path, where: Destination) -> int:
    mirror = Mirror(RunFiles(folder), where)
    try:
        return mirror.sync()
    finally:
        mirror.close()


def wanted(folder: Path) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    for rows in RunFiles(folder).rows_after(0):
        for row in rows:
            for name, value in row.values.items():
                values.setdefault(name, {})[row.step] = value
    return values


def compare(found: dict[str, dict[int, float]], folder: Path, rename: Any = lambda name: name) -> None:
    expected = {rename(name): values for name, values in wanted(folder).items()}
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-6), name


@pytest.mark.parametrize("name", TRACKERS)
def test_growing_then_done_then_again(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    where, folder = destination(name, places), tmp_path / "run"
    spec = made_spec(seed=11)
    made_run(folder, spec, until=33)
    assert synced(folder, where) == 32  # the last row of a run that trains may still change
    assert synced(folder, where) == 0
    shutil.rmtree(folder / "metrics")
    made_run(folder, spec)
    assert synced(folder, where) == 28
    assert synced(folder, where) == 0
    compare(READERS[name](places[name], "lab", spec.id), folder)


@pytest.mark.parametrize("name", TRACKERS)
def test_one_writer_over_many_looks(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    where, folder = destination(name, places), tmp_path / "run"
    spec = made_spec(seed=12)
    mirror = Mirror(RunFiles(folder), where)
    with pytest.raises(FileNotFoundError):
        mirror.sync()
    for until in (5, 20, 40, 59):
        shutil.rmtree(folder / "metrics", ignore_errors=True)
        made_run(folder, spec, until=until)
        mirror.sync()
    with pytest.raises(BusyError, match=f"writes this run to {name}"):
        synced(folder, where)
    made_run(folder, spec)
    mirror.sync()
    mirror.close()
    found = READERS[name](places[name], "lab", spec.id)
    # a portion that ends at the last row of a look is known before that row is
    compare(found, folder)


@pytest.mark.parametrize("name", TRACKERS)
def test_hostile_names(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    where, folder = destination(name, places), tmp_path / "run"
    spec = made_spec(domains=HOSTILE, seed=13)
    made_run(folder, spec, domains=HOSTILE)
    files = RunFiles(folder, "<img src=x onerror=alert(1)>", {"study.0": "../../etc"})
    mirror = Mirror(files, where)
    if name == "tensorboard":  # its folder is the name
        mirror = Mirror(RunFiles(folder), where)
    mirror.sync()
    mirror.close()
    rename = __import__("armillary.trackers.writers.mlflow", fromlist=["metric_name"]).metric_name
    compare(READERS[name](places[name], "lab", spec.id), folder, rename if name == "mlflow" else lambda key: key)


@pytest.mark.parametrize("name", TRACKERS)
def test_no_secret_is_written(name: str, places: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    for key, value in SECRETS.items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "run"
    made_run(folder, made_spec(seed=14))
    synced(folder, destination(name, places))
    files = [path for root in (places[name].parent, tmp_path) for path in root.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert not [value for value in SECRETS.values() if value.encode() in data], path


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="pip install 'armillary[tensorboard]'")
@pytest.mark.parametrize("cut", [1, 3, 12, 13, 40, 200, 4000])
def test_a_torn_event_file_is_continued(cut: int, tmp_path: Path) -> None:
    where, folder = Destination("tensorboard", str(tmp_path / "tb"), "lab"), tmp_path / "run"
    spec = made_run(folder)
    synced(folder, where)
    (path,) = (tmp_path / "tb").rglob("*tfevents*")
    os.truncate(path, max(0, path.stat().st_size - cut))
    assert synced(folder, where) > 0
    compare(READERS["tensorboard"](tmp_path / "tb", "lab", spec.id), folder)
    with open(path, "r+b") as file:  # zeros, as after a power loss
        file.seek(-30, os.SEEK_END)
        file.write(bytes(30))
    assert synced(folder, where) == 1
    compare(READERS["tensorboard"](tmp_path / "tb", "lab", spec.id), folder)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="pip install 'armillary[mlflow]'")
def test_a_server_that_is_away_is_named_without_its_password(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2hunter2@127.0.0.1:9")
    made_run(tmp_path / "run")
    with pytest.raises(TrackerError) as caught:
        synced(tmp_path / "run", Destination("mlflow", "", "lab"))
    assert "127.0.0.1" in str(caught.value) and "hunter2" not in str(caught.value)


def test_errors_are_told_without_secrets() -> None:
    environment = {"WANDB_API_KEY": "k" * 40, "URI": "http://u:sesame@h", "SHORT_KEY": "abc", "PATH": "/bin"}
    text = described(ValueError(f"no {'k' * 40} at http://u:sesame@h or sesame, abc in /bin\nmore"), environment)
    assert text == "no *** at http://u:***@h or ***, abc in /bin"
    where = "(raised as a result of Query-invoked autoflush; consider ...)"
    assert described(ValueError(f"{where}\n(sqlite3.OperationalError) disk is full"), {}).endswith("disk is full")


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: Any) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "armillary.trackers.writers.wandb", None)
    made_run(tmp_path / "run")
    with pytest.raises(TrackerError, match=r"is not installed here: pip install 'armillary\[wandb\]'"):
        synced(tmp_path / "run", Destination("wandb", str(tmp_path), "lab"))


def test_rows_stop_at_a_gap_and_at_what_is_torn(tmp_path: Path) -> None:
    spec = made_run(tmp_path, until=40)
    (tmp_path / "metrics" / "rows-1.parquet").unlink()
    assert list(RunFiles(tmp_path).rows_after(0)) == []
    write_rows(tmp_path / "metrics" / "rows-1.parquet", made_rows(spec, ("sky", "sea"), 0, 20))
    rows = [row for part in RunFiles(tmp_path).rows_after(7) for row in part]
    assert [row.step for row in rows] == list(range(8, 40))
    assert rows[0].time_s == pytest.approx(1_700_000_008) and rows[12].values["tokens_per_s"] == 64.0
    assert list(rows[0].values)[-1] == "tokens"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"step": ["1", "2"], "loss": [1.0, 2.0]}, "column 'step' has no whole numbers"),
        ({"step": [1, None], "loss": [1.0, 2.0]}, "column 'step' has no whole numbers"),
        ({"loss": [1.0, 2.0]}, "no column 'step'"),
    ],
)
def test_metrics_of_another_program_are_named(columns: dict[str, list[Any]], said: str, tmp_path: Path) -> None:
    made_run(tmp_path)
    pq.write_table(pa.table(columns), tmp_path / "metrics.parquet")
    with pytest.raises(DamagedFileError, match=f"metrics.parquet: .*{said}"):
        list(RunFiles(tmp_path).rows_after(0))


def test_metrics_and_events_with_values_of_other_kinds(tmp_path: Path) -> None:
    made_run(tmp_path)
    pq.write_table(
        pa.table(
            {"step": [1, 2], "loss": [1.0, 2.0], "note": ["a", "b"], "list": [[1.0], [2.0]], "yes": [True, False]}
        ),
        tmp_path / "metrics.parquet",
    )
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"kind": "progress", "step": 1, "time_s": 1' + "0" * 400 + "}\n[1]\n3\n")
    (rows,) = RunFiles(tmp_path).rows_after(0)
    assert [dict(row.values) for row in rows] == [{"loss": 1.0}, {"loss": 2.0}]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    spec = made_run(tmp_path, until=30)
    rows = pq.read_table(tmp_path / "metrics" / "rows-1.parquet")
    for file in (tmp_path / "metrics").iterdir():
        file.unlink()
    for name in ("step-10", "step-20.damaged", "step-30.damaged-2"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    pq.write_table(rows, tmp_path / "checkpoints" / "step-10" / "metrics.parquet")
    (tmp_path / "checkpoints" / "step-20.damaged" / "metrics.parquet").write_bytes(b"torn")
    (found,) = RunFiles(tmp_path).rows_after(0)
    assert [row.step for row in found] == list(range(1, 15)) and spec.steps == 60
    assert metric_files(tmp_path) == ([tmp_path / "checkpoints" / "step-10" / "metrics.parquet"], False)


@pytest.mark.parametrize("name", TRACKERS)
def test_an_export_continues_the_run_that_training_began_under_another_name(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    """A large run is called by its name while it trains, and by its folder in an export."""
    where, folder = destination(name, places), tmp_path / "folder"
    spec = made_spec(seed=15)
    made_run(folder, spec, until=30)
    mirror = Mirror(RunFiles(folder, "large"), where)
    mirror.sync()
    mirror.close()
    made_run(folder, spec)
    chosen = run_in(folder)
    assert chosen is not None
    (found,) = export_runs([chosen], where)
    assert found.rows == 31
    if name == "tensorboard":
        (file,) = places[name].glob(f"*{spec.id[:8]}*/*tfevents*")
        assert file.parent.name == f"large-{spec.id[:8]}"
