"""Fixtures of the path: a lab whose runs take no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished import finished_workspace, quick_report
from formula_runs import make_lab, make_recipe
from tiny_teaching import taught

import fakes
from armillary.corpus import Corpus
from armillary.path import Evidence, pages, workspace
from armillary.recipe import CorpusSpec
from armillary.study import Lab, LadderOutcome, mixture, predictions
from tiny_model import tiny_hf

__all__ = ["taught", "tiny_hf"]


@pytest.fixture(scope="session")
def kept_laws() -> dict[str, Any]:
    """Laws that were fitted for an earlier test; the ladder is the same in all of them."""
    return {}


@pytest.fixture(autouse=True)
def fit_once(kept_laws: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit each law once in a session."""

    def once(name: str, fit: Callable[..., Any]) -> Callable[..., Any]:
        def kept(outcome: LadderOutcome, *rest: Any) -> Any:
            key = f"{name} {outcome.points} {rest}"
            if key not in kept_laws:
                kept_laws[key] = fit(outcome, *rest)
            return kept_laws[key]

        return kept

    monkeypatch.setattr(pages, "fit_law", once("law", pages.fit_law))
    monkeypatch.setattr(pages, "hold_out_rungs", once("rungs", pages.hold_out_rungs))
    monkeypatch.setattr(predictions, "fit_law", once("law", predictions.fit_law))


@pytest.fixture(scope="session")
def finished(tiny_corpus_spec: CorpusSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    """A finished workspace and what it found, with a law and a report that take no time; to be copied, not changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "MixtureLaw", fakes.QuickLaw)
        patch.setattr(mixture, "optimise_mixture", fakes.quick_optima)
        patch.setattr(workspace, "write_report", quick_report)
        place, evidence = finished_workspace(tiny_corpus_spec, tmp_path_factory.mktemp("finished") / "tiny")
    return place.folder, evidence


@pytest.fixture
def lab(tiny_corpus: Corpus, tiny_corpus_spec: CorpusSpec, tmp_path: Path) -> Lab:
    """A lab whose runs take no time, in ``tmp_path``."""
    return make_lab(make_recipe(tiny_corpus_spec), tiny_corpus, tmp_path)
