"""A workspace with all stages, whose runs have metrics and events, without training; and a client of its console."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import examination, write_run

import fakes
from armillary.evaluate import write_examination
from armillary.recipe import RunSpec, write_sealed
from armillary.store import Store
from armillary.study import mixture
from armillary.study.examined import record_examination

pytest.importorskip("starlette", reason="pip install 'armillary[console]'")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole workspace; copy it before changing it."""
    folder = tmp_path_factory.mktemp("console") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "MixtureLaw", fakes.QuickLaw)
        patch.setattr(mixture, "optimise_mixture", fakes.quick_optima)
        store = Store(folder / "store")
        lab = replace(
            fakes.make_lab(folder / "unused"),
            store=store,
            executor=fakes.FakeExecutor(store, _lost),  # type: ignore[arg-type]
        )
        found = fakes.along(lab)
    shutil.rmtree(folder / "unused", ignore_errors=True)
    target = found["target"].predicted
    for number, run in enumerate([target, *found["mixture"].runs[:3]]):
        write_run(store.run_folder(run), store.run_spec(run), 200 + 50 * number, ranks=2 if run == target else 1)
    for name, right in (("good", 24), ("bad", 8)):
        write_examination(folder / "examination" / name, examination(name, right, target if name == "good" else None))
        record_examination(store, folder / "examination" / name)
    (folder / "model").mkdir()
    domains = {
        "a": {"source": "a.txt", "licence": "CC BY 4.0", "train": True, "train_tokens": 1000, "validation_tokens": 9}
    }
    lineage = {
        "format": 2,
        "run": target,
        "edges": [list(edge) for edge in store.edges([target])],
        "corpus": {"hash": "c" * 16, "domains": domains},
        "files": {"model.safetensors": "0" * 64, "README.md": "1" * 64},
        "verdict_status": "judged",
    }
    write_sealed(folder / "model" / "lineage.json", lineage)
    write_sealed(folder / "plan.json", {"format": 2, "key": "", "plan": {"budget": "6m", "seconds": {"mixture": 60.0}}})
    write_sealed(folder / "cost.json", {"format": 2, "wall_s": {"mixture": 70.5, "ladder": 30.0}})
    store.close()
    return folder


def _lost(spec: RunSpec) -> str | None:
    """One of the proxies diverges."""
    return "diverged" if spec.seed == 0 and spec.mixture[0].weights.get("a", 0) > 0.9 else None


@pytest.fixture
def workspace(built: Path, tmp_path: Path) -> Path:
    """A copy of the workspace."""
    return Path(shutil.copytree(built, tmp_path / "results"))


@pytest.fixture
def client() -> Iterator[Callable[..., Any]]:
    """Make a client of a console over places."""
    from starlette.testclient import TestClient

    from armillary.console import ConsoleOptions, create_app

    made = []

    def make(*places: Path | str, token: str | None = None, base: str = "http://localhost") -> Any:
        app = create_app(ConsoleOptions(tuple(map(str, places))), token)
        made.append(app)
        return TestClient(app, base_url=base, raise_server_exceptions=False)

    yield make
    for app in made:
        app.state.watch.close()
