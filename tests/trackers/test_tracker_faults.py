"""Trackers whose disk is full or whose server dies: the run ends as without them, and an export adds what they lack."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import READERS, made_run, made_spec

from armillary.recipe import Validation, read_result
from armillary.store.locks import is_locked
from armillary.trackers import Destination, RunFiles, Track, export_runs, run_in
from armillary.trackers.mirror import Mirror, TrackerError
from armillary.train import train_run

pytestmark = pytest.mark.slow


def needs(*packages: str) -> Any:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}")


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """Every metric of a finished run."""
    values: dict[str, dict[int, float]] = {}
    for rows in RunFiles(folder).rows_after(0):
        for row in rows:
            for name, value in row.values.items():
                values.setdefault(name, {})[row.step] = value
    return values


def same(found: dict[str, dict[int, float]], folder: Path) -> None:
    wanted = expected(folder)
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=1e-6), name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of a number of KiB; called again it grows."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(kib: int) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{again}size={kib}k", "none", place], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return place

    yield sized
    subprocess.run(["umount", "--lazy", place], check=False)


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        pytest.param("tensorboard", 12, marks=needs("tensorboard")),
        pytest.param("mlflow", 20_000, marks=needs("mlflow")),
        pytest.param("wandb", 24, marks=needs("wandb")),
    ],
)
def test_a_full_disk_changes_no_run(
    name: str, kib: int, small_disk: Any, make_spec: Any, tiny_corpus: Any, tmp_path: Path, undisturbed: Any,
    outcome: Any,
) -> None:  # fmt: skip
    spec = make_spec(steps=200, validation=Validation(every=20, windows=4))
    place = small_disk(kib)
    at = place / "m.db" if name == "mlflow" else place
    where = Destination(name, f"sqlite:///{at}" if name == "mlflow" else str(place), "p")
    if name == "mlflow":  # it does not repair tables that it has made in part
        made_run(tmp_path / "other", made_spec())
        other = run_in(tmp_path / "other")
        assert other is not None
        list(export_runs([other], where))
        small_disk(at.stat().st_size // 1024 + 40)
    said: list[str] = []
    hook = Track(where, tmp_path / "run", say=said.append)
    train_run(spec, tiny_corpus, tmp_path / "run", hooks=[hook])
    hook.close()
    assert outcome(tmp_path / "run") == undisturbed(spec)
    assert len(said) == 1 and said[0].startswith(f"{name}: ") and "armillary runs export" in said[0], said
    print(said)
    end = time.monotonic() + 150
    while is_locked(tmp_path / "run" / f".tracker-{name}.lock"):
        assert time.monotonic() < end
        time.sleep(0.1)
    chosen = run_in(tmp_path / "run")
    assert chosen is not None
    small_disk(200_000)
    for _ in range(2):
        list(export_runs([chosen], where))
    same(READERS[name](at, "p", spec.id), tmp_path / "run")


class Server:
    """MLflow's tracking server over HTTP with an SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "server.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"),
            *("--default-artifact-root", str(folder / "artifacts")),
        ]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.3)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        """All its processes at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for package in ("mlflow", "flask", "flask_cors", "graphene", "huey"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: pip install mlflow, which has the server")
    made = Server(tmp_path_factory.mktemp("mlflow"))
    made.start()
    yield made
    made.kill()


def test_mlflow_over_http_and_a_server_that_is_killed(server: Server, tmp_path: Path) -> None:
    """Each step is there once, whatever the server had stored when it was killed."""
    spec = made_spec(steps=3000, seed=21)
    made_run(tmp_path / "run", spec, until=1500)
    where = Destination("mlflow", server.uri, "over http")
    mirror = Mirror(RunFiles(tmp_path / "run"), where)
    assert mirror.sync() == 1499
    server.kill()
    made_run(tmp_path / "run", spec)
    with pytest.raises(TrackerError, match=r"127\.0\.0\.1"):
        mirror.sync()
    mirror.close()
    server.start()
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 -{server.process.pid if server.process else 0}"])
    mirror = Mirror(RunFiles(tmp_path / "run"), where)
    with contextlib.suppress(TrackerError):
        mirror.sync()  # the server dies in the middle, or has just got everything
    killer.wait()
    mirror.close()
    server.start()
    mirror = Mirror(RunFiles(tmp_path / "run"), where)
    mirror.sync()
    assert mirror.sync() == 0
    mirror.close()
    same(READERS["mlflow"](server.database, "over http", spec.id), tmp_path / "run")


def test_a_run_trains_on_while_its_server_is_away(
    server: Server, make_spec: Any, tiny_corpus: Any, tmp_path: Path, undisturbed: Any, outcome: Any
) -> None:
    spec = make_spec(steps=240, seed=5, validation=Validation(every=20, windows=4))
    said: list[str] = []
    hook = Track(Destination("mlflow", server.uri, "away"), tmp_path / "run", say=said.append)

    def progress(step: int) -> None:
        time.sleep(0.08)
        if step == 60:
            server.kill()
        if step == 120:
            server.start()

    train_run(spec, tiny_corpus, tmp_path / "run", hooks=[hook], progress=progress)
    hook.close()
    assert outcome(tmp_path / "run") == undisturbed(spec) and read_result(tmp_path / "run") is not None
    print(said)
    assert (
        said
        and "Training goes on" in said[0]
        and said[1:] in ([], ["mlflow: works again; the missing metrics are added"])
    )
    end = time.monotonic() + 150
    while is_locked(tmp_path / "run" / ".tracker-mlflow.lock"):
        assert time.monotonic() < end
        time.sleep(0.1)
    same(READERS["mlflow"](server.database, "away", spec.id), tmp_path / "run")
