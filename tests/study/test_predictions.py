"""What is recorded of the target run where the ladder supports a part of it only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from armillary.laws import Prediction
from armillary.recipe import ArmillaryError
from armillary.study import Found, forecast, predictions
from fakes import make_lab


class OpenLaw:
    """A law of three domains and the target, of which the columns in ``void`` are left open."""

    weights_: dict[str, float] = {}  # noqa: RUF012
    parameters_: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, *void: int) -> None:
        self.void = list(void)

    def predict_known(self, X: np.ndarray, interval: float) -> Prediction:
        mean, low, high = np.full((1, 4), 3.0), np.full((1, 4), 2.9), np.full((1, 4), 3.1)
        low[:, self.void], high[:, self.void] = 0, np.inf
        return Prediction(mean, low, high)

    def extrapolation(self, X: np.ndarray) -> np.ndarray:
        return np.ones(1)


def said(folder: Path, law: OpenLaw, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    monkeypatch.setattr(predictions, "fit_law", lambda *_: law)
    lab, even = make_lab(folder), {"a": 0.4, "b": 0.3, "c": 0.3}
    annealing = lab.recipe.study.anneal
    found = Found(
        mixture=even,
        natural=even,
        uniform=even,
        annealing={"share": annealing.shares[0], "shape": "linear", "sharpen": 1.0},  # type: ignore[arg-type]
    )
    spec = predictions.target_spec(lab, found, even, 1)
    mixture, ladder = SimpleNamespace(domains=["a", "b", "c"]), SimpleNamespace(points=[])
    return forecast(lab, spec, mixture, ladder), lab.said  # type: ignore[arg-type, attr-defined]


def test_a_domain_that_is_left_open_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, heard = said(tmp_path, OpenLaw(1), monkeypatch)
    assert set(content["domains"]) == {"a", "c"} and content["open"] == ["b"]
    assert content["target"] == {"predicted": 3.0, "low": 2.9, "high": 3.1}
    assert any("not predicted" in text and text.endswith(": b") for text in heard)


def test_without_an_open_domain_the_record_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, heard = said(tmp_path, OpenLaw(), monkeypatch)
    assert set(content["domains"]) == {"a", "b", "c"} and "open" not in content and not heard


def test_an_open_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArmillaryError, match=r"target loss spans more than .*give study\.ladder greater depths"):
        said(tmp_path, OpenLaw(3), monkeypatch)
