"""Past runs in trackers: chosen from a store or a folder, each step once however often, and after a kill."""

from __future__ import annotations

import csv
import importlib.util
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_runs import BEGAN_S, HOSTILE, READERS, made_run, made_spec

from armillary.recipe import ArmillaryError, RunResult, Trackers, UsageError, read_result
from armillary.store import Store
from armillary.trackers import Destination, chosen_destination, export_runs, run_in, runs_in

tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="pip install 'armillary[tensorboard]'"
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results of a recipe: two done runs, one that was interrupted, one that has not begun, and a damaged one."""
    folder = tmp_path / "mine"
    store = Store(folder / "store")
    specs = [made_spec(seed=seed) for seed in range(1, 6)]
    store.add("mixture", specs[:4])
    store.add("target", specs[1:2])
    store.add("ladder", specs[4:])
    for spec in specs[:2]:
        made_run(store.run_folder(spec.id), spec)
        result = read_result(store.run_folder(spec.id))
        assert isinstance(result, RunResult)
        store.mark_done(result)
    made_run(store.run_folder(specs[2].id), specs[2], until=30)
    made_run(store.run_folder(specs[4].id), specs[4])
    (store.run_folder(specs[4].id) / "metrics.parquet").write_bytes(b"PAR1 torn")
    store.close()
    recipe = {
        "name": "mine",
        "corpus": {"domains": {"sky": {"source": "sky.txt"}, "sea": {"source": "sea.txt"}}},
        "target": {"sky": 1},
        "model": {"depth": 2},
        "training": {"tokens": 20000},
        "trackers": {"tensorboard": {"folder": "../boards"}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@tensorboard
def test_twice_is_as_once(results: Path, tmp_path: Path) -> None:
    chosen = runs_in(results / "store")
    assert [one.status for one in chosen] == ["done", "done", "pending", "pending"]
    assert chosen[1].studies == ("mixture", "target")
    where = chosen_destination("tensorboard", Trackers(), tmp_path, "mine")
    first = list(export_runs(chosen, where))
    assert [one.rows for one in first] == [60, 60, 29, 0]
    assert first[3].problem is not None and "metrics.parquet: metrics cannot be read" in first[3].problem
    assert [one.rows for one in export_runs(chosen, where)] == [0, 0, 0, 0]
    for one in chosen[:2]:
        assert len(READERS["tensorboard"](Path(where.place), "mine", one.run)["loss"]) == 60


def test_runs_are_chosen_by_the_beginning_of_their_id(results: Path) -> None:
    every = runs_in(results / "store")
    assert [one.run for one in runs_in(results / "store", None, [every[0].run[:9]])] == [every[0].run]
    with pytest.raises(UsageError, match="no run begins with 'zz'"):
        runs_in(results / "store", None, ["zz"])


def test_csv_has_a_file_per_run_and_a_table_that_fit_scaling_takes(results: Path, tmp_path: Path) -> None:
    from armillary.laws import read_table
    from armillary.laws.columns import default_columns

    chosen = runs_in(results / "store")
    where = Destination("csv", str(tmp_path / "csv"), "mine")
    for _ in range(2):
        found = list(export_runs(chosen, where))
        assert [one.rows for one in found] == [60, 60, 29, 0]
    with open(tmp_path / "csv" / f"{chosen[0].run}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 61))
    assert float(rows[19]["time_s"]) == BEGAN_S + 20 and rows[19]["validation/sky/loss"] == "2.55"
    assert rows[0]["validation/sky/loss"] == "" and rows[0]["loss"]
    table = read_table(tmp_path / "csv" / "runs.csv")
    assert default_columns(table) == ["params", "tokens", "validation/sky/loss", "validation/sea/loss"]
    assert table.text("run") == [chosen[0].run, chosen[1].run, chosen[3].run]
    assert not list((tmp_path / "csv").glob(".*"))
    # a later export of one run keeps the rows of the others
    list(export_runs(runs_in(results / "store", None, [chosen[1].run]), where))
    assert sorted(read_table(tmp_path / "csv" / "runs.csv").text("run")) == sorted(table.text("run"))
    (tmp_path / "csv" / "runs.csv").write_bytes(b"run\n\xff\n")
    with pytest.raises(ArmillaryError, match=r"runs\.csv: cannot be read"):
        list(export_runs(chosen, where))


def test_the_folder_of_a_run_alone(tmp_path: Path) -> None:
    made_run(tmp_path / "large", made_spec(domains=HOSTILE), domains=HOSTILE)
    chosen = run_in(tmp_path / "large")
    assert chosen is not None and chosen.name == "large" and run_in(tmp_path) is None
    assert [one.rows for one in export_runs([chosen], Destination("csv", str(tmp_path / "csv"), "p"))] == [60]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("grafana", None, None), "--to grafana: not one of tensorboard, mlflow, wandb, trackio, csv"),
        (("mlflow", "https://me:pw@host", None), "holds a user or a password"),
        (("wandb", None, "../x"), "letters, digits"),
    ],
)
def test_wrong_places_are_refused(arguments: Any, said: str, tmp_path: Path) -> None:
    tracker, place, project = arguments
    with pytest.raises(UsageError, match=said):
        chosen_destination(tracker, Trackers(), tmp_path, "mine", place, project)


def test_places_come_from_the_recipe_or_are_in_the_results(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_DIR", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    given = Trackers.model_validate({"tensorboard": {"folder": "/boards"}, "mlflow": None, "wandb": {}})
    found = [chosen_destination(name, given, tmp_path, "a/b:c") for name in ("tensorboard", "mlflow", "wandb")]
    assert [asdict(one) for one in found] == [
        {"tracker": "tensorboard", "place": "/boards", "project": "a_b_c", "entity": None, "online": False},
        {
            "tracker": "mlflow",
            "place": f"sqlite:///{tmp_path}/mlflow.db",
            "project": "a_b_c",
            "entity": None,
            "online": False,
        },
        {"tracker": "wandb", "place": str(tmp_path), "project": "a_b_c", "entity": None, "online": False},
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    assert chosen_destination("mlflow", given, tmp_path, "p").place == ""  # with its password it stays there


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "armillary", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@tensorboard
def test_the_verb(results: Path, tmp_path: Path) -> None:
    done = command("runs", "export", results, "--to", "tensorboard", "--run", made_spec(seed=1).id[:8])
    assert done.returncode == 0, done.stderr
    assert f"1 run in tensorboard, {tmp_path / 'boards'}, mine: 60 steps added" in done.stdout


def test_an_export_without_a_run_has_failed(results: Path, tmp_path: Path) -> None:
    arguments = ("runs", "export", results, "--to", "csv", "--at", tmp_path / "csv", "--run", made_spec(seed=5).id[:8])
    done = command(*arguments)
    assert done.returncode == 1 and "left out" in done.stderr


DYING = """
import os, signal, sys
from tensorboard.summary.writer.record_writer import RecordWriter
write, left = RecordWriter.write, int(sys.argv.pop(1))
def dying(self, data):
    global left
    left -= 1
    if left == 0:
        self._writer.write(data[: len(data) // 2])
        self._writer.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, data)
RecordWriter.write = dying
from armillary.cli import main
main()
"""


@tensorboard
@pytest.mark.slow
def test_an_export_that_is_killed_resumes(results: Path, tmp_path: Path) -> None:
    """Killed within the n-th record, again and again; then every step is there once."""
    arguments = ["runs", "export", str(results), "--to", "tensorboard"]
    for number in (1, 2, 3, 30, 31, 62, 90):
        done = subprocess.run(
            [sys.executable, "-c", DYING, str(number), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    done = command(*arguments)
    assert done.returncode == 0 and "metrics cannot be read" in done.stderr, done.stderr
    for seed in (1, 2):
        found = READERS["tensorboard"](tmp_path / "boards", "mine", made_spec(seed=seed).id)
        assert sorted(found["tokens"]) == list(range(1, 61))


def test_trackers_change_neither_plan_nor_document(results: Path) -> None:
    from armillary.recipe import load_recipe
    from armillary.study import plan_inputs

    with_trackers = load_recipe(results / "recipe.yaml")
    document = yaml.safe_load((results / "recipe.yaml").read_text())
    del document["trackers"]
    (results / "recipe.yaml").write_text(yaml.safe_dump(document))
    without = load_recipe(results / "recipe.yaml")
    assert with_trackers.trackers != without.trackers and plan_inputs(with_trackers) == plan_inputs(without)
    assert "trackers" not in without.model_dump(mode="json")
