"""A finished workspace called again: copied with its sources, with a refused source, with a part that fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from finished import Here, InProcess, quick_report

import fakes
from armillary.path import Evidence, workspace
from armillary.recipe import ArmillaryError, Lesson, UsageError
from armillary.study import mixture


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "MixtureLaw", fakes.QuickLaw)
    monkeypatch.setattr(mixture, "optimise_mixture", fakes.quick_optima)
    monkeypatch.setattr(workspace, "write_report", quick_report)
    monkeypatch.setattr(InProcess, "_receive", lambda _: pytest.fail("a run is trained again"))


@pytest.mark.slow
def test_a_copied_workspace_trains_nothing(finished: tuple[Path, Evidence], tmp_path: Path) -> None:
    folder, first = finished
    shutil.copytree(folder, tmp_path / "results", copy_function=shutil.copyfile)  # as `cp -r`: with new times
    corpus = first.recipe.corpus
    domains = {
        name: domain.model_copy(update={"source": str(shutil.copyfile(domain.source, tmp_path / f"{name}.txt"))})
        for name, domain in corpus.domains.items()
    }
    recipe = first.recipe.model_copy(update={"corpus": corpus.model_copy(update={"domains": domains})})

    stages: set[str] = set()
    again = Here(recipe, tmp_path / "results", workers=1, progress=lambda stage, *_: stages.add(stage)).report()
    assert {stage for stage in stages if stage.startswith("corpus: ")} == {"corpus: hash"}
    assert (again.corpus.hash, again.prediction, again.verdict) == (first.corpus.hash, first.prediction, first.verdict)
    again.store.close()


def test_a_report_written_again_costs_nothing(finished: tuple[Path, Evidence], tmp_path: Path) -> None:
    """Two reports of one workspace, such as in two languages, show the same wall time."""
    folder, first = finished
    shutil.copytree(folder, tmp_path / "results")
    before = (tmp_path / "results" / "cost.json").read_bytes()
    again = Here(first.recipe, tmp_path / "results", workers=1).report(language="zh")
    again.store.close()
    assert (tmp_path / "results" / "cost.json").read_bytes() == before and (
        tmp_path / "results/report.zh.html"
    ).exists()


def test_a_failed_examination_leaves_verdict_and_report(
    finished: tuple[Path, Evidence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ArmillaryError("the items cannot be made")

    folder, first = finished
    shutil.copytree(folder, tmp_path / "results")
    for name in ("report.html", "summary.json"):
        (tmp_path / "results" / name).unlink()
    monkeypatch.setattr(workspace, "examine", fails)
    said: list[str] = []
    again = Here(first.recipe, tmp_path / "results", workers=1, say=said.append).report()
    assert again.verdict == first.verdict and again.examined is None
    assert "examine: no examination: the items cannot be made" in said
    assert (tmp_path / "results" / "report.html").exists()
    assert json.loads((tmp_path / "results" / "summary.json").read_text())["verdict"]
    again.store.close()


@pytest.mark.parametrize("error", [ArmillaryError("no room"), OSError("no room"), RuntimeError("no room")])
def test_a_failed_lesson_leaves_verdict_model_and_report(
    finished: tuple[Path, Evidence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    folder, first = finished
    shutil.copytree(folder, tmp_path / "results")
    for name in ("report.html", "summary.json"):
        (tmp_path / "results" / name).unlink()
    monkeypatch.setattr(workspace, "give_lesson", fails)
    recipe = first.recipe.model_copy(update={"lesson": Lesson()})
    again = Here(recipe, tmp_path / "results", workers=1).report()
    assert again.verdict == first.verdict and again.lesson is None
    assert again.unfinished == ["lesson: no room"]
    assert (tmp_path / "results" / "report.html").exists()
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["verdict"] and summary["lesson"] == "no room"
    again.store.close()


def test_what_a_lesson_would_replace_is_refused_before_anything(
    finished: tuple[Path, Evidence], tmp_path: Path
) -> None:
    folder, first = finished
    shutil.copytree(folder, tmp_path / "results")
    (tmp_path / "results" / "chat").mkdir()
    (tmp_path / "results" / "chat" / "mine.txt").write_text("mine")
    place = Here(first.recipe.model_copy(update={"lesson": Lesson()}), tmp_path / "results", workers=1)
    with pytest.raises(UsageError, match="not published from here"):
        place.report()


def test_the_index_of_a_corpus_survives_a_refused_source(finished: tuple[Path, Evidence], tmp_path: Path) -> None:
    folder, first = finished
    shutil.copytree(folder, tmp_path / "results")
    corpus = first.recipe.corpus
    gone = corpus.domains["code"].model_copy(update={"source": str(tmp_path / "gone.txt")})
    broken = corpus.model_copy(update={"domains": {**corpus.domains, "code": gone}})
    with pytest.raises(UsageError, match=r"gone\.txt: does not exist"):
        Here(first.recipe.model_copy(update={"corpus": broken}), tmp_path / "results", workers=1).corpus()
    again = Here(first.recipe, tmp_path / "results", workers=1, progress=lambda *call: pytest.fail(str(call)))
    assert again.corpus().hash == first.corpus.hash
