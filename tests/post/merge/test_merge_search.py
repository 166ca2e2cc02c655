"""Weights are found on a validation set; the best single model is kept unless a merge is better beyond noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.model import Transformer, export_hf
from armillary.post.merge import MergeOptions, Search, merge, search_merge
from armillary.recipe import DamagedFileError, ModelShape, UsageError

SHAPE = ModelShape(n_layers=1, d_model=16, n_heads=1, n_kv_heads=1, head_dim=16, d_ff=16, vocab_size=16)
ITEMS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two models that each moved one tensor."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("search")
    Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, "<end>")).save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    base = Transformer(SHAPE)
    export_hf(base, folder / "base", tokenizer_file=folder / "tokenizer.json", end_token="<end>", context_length=16)
    for name, tensor in (("one", "model.norm.weight"), ("two", "model.layers.0.input_layernorm.weight")):
        merge(folder / "base", [folder / "base"], folder / name, MergeOptions())
        (folder / name / "record.json").unlink()
        tensors = load_file(folder / name / "model.safetensors")
        tensors[tensor] += 1.0
        save_file(tensors, folder / name / "model.safetensors")
    return folder


def moved(folder: Path) -> np.ndarray[Any, Any]:
    """How far a model moved along the two directions."""
    tensors = load_file(folder / "model.safetensors")
    names = ("model.norm.weight", "model.layers.0.input_layernorm.weight")
    return np.array([float(tensors[name].mean()) - 1.0 for name in names])


class Score:
    """Best at ``at`` in the plane of the two directions; counts its calls."""

    def __init__(self, at: tuple[float, float], noise: float = 0.01) -> None:
        self.at, self.noise, self.calls = np.array(at), noise, 0

    def __call__(self, folder: Path) -> np.ndarray[Any, Any]:
        self.calls += 1
        where = moved(folder)
        rng = np.random.default_rng(int(abs(where).sum() * 1e6))
        return -float(((where - self.at) ** 2).sum()) + self.noise * rng.standard_normal(ITEMS)


def search(place: Path, out: Path, score: Score, method: str = "linear", **more: Any) -> dict[str, Any]:
    asked = Search(score, "a score", **more)
    return search_merge(place / "base", [place / "one", place / "two"], out, MergeOptions(method), asked)


def test_weights_between_the_models_are_found(place: Path, tmp_path: Path) -> None:
    found = search(place, tmp_path / "out", Score((0.3, 0.7)))
    assert found["decision"] == "merge" and found["difference"]["low"] > 0
    assert found["weights"] == pytest.approx([0.3, 0.7], abs=0.07)
    np.testing.assert_allclose(moved(tmp_path / "out"), found["weights"], atol=1e-5)


def test_a_scale_is_found_for_differences(place: Path, tmp_path: Path) -> None:
    found = search(place, tmp_path / "out", Score((1.0, 1.0)), "task", evaluations=16)
    assert found["decision"] == "merge" and found["scale"] > 1.4
    np.testing.assert_allclose(moved(tmp_path / "out"), [1.0, 1.0], atol=0.25)


@pytest.mark.parametrize("at", [(1.0, 0.0), (0.0, 0.0)])
def test_the_best_single_model_is_kept_where_no_merge_is_better(
    place: Path, tmp_path: Path, at: tuple[float, float]
) -> None:
    found = search(place, tmp_path / "out", Score(at))
    assert found["decision"] == "do not merge"
    assert Path(found["best_single"]).name == ("one" if at[0] else "base")
    np.testing.assert_allclose(moved(tmp_path / "out"), at, atol=1e-5)


def test_luck_alone_does_not_make_a_merge_better(place: Path, tmp_path: Path) -> None:
    class Lucky(Score):
        def __call__(self, folder: Path) -> np.ndarray[Any, Any]:
            return np.random.default_rng(int(abs(moved(folder)).sum() * 1e6)).standard_normal(ITEMS)

    assert search(place, tmp_path / "out", Lucky((0, 0)), "task", evaluations=6)["decision"] == "do not merge"


def test_evaluations_are_bounded_and_a_stopped_search_resumes(place: Path, tmp_path: Path) -> None:
    class Stopped(Score):
        def __call__(self, folder: Path) -> np.ndarray[Any, Any]:
            if self.calls == 6:
                raise KeyboardInterrupt
            return super().__call__(folder)

    first = Stopped((0.3, 0.7))
    with pytest.raises(KeyboardInterrupt):
        search(place, tmp_path / "out", first, evaluations=6)
    assert not (tmp_path / "out").exists()
    with (tmp_path / "out.search" / "scores.jsonl").open("a") as file:
        file.write('{"key": "to')  # torn by the kill
    again = Score((0.3, 0.7))
    found = search(place, tmp_path / "out", again, evaluations=6)
    assert first.calls + again.calls == 6 + 3  # the base and the two models besides
    alone = search(place, tmp_path / "whole", Score((0.3, 0.7)), evaluations=6)
    assert found == alone and found["evaluations"] == 6
    # Once more: nothing is scored or merged.
    last = Score((0.3, 0.7))
    assert search(place, tmp_path / "out", last, evaluations=6) == found and last.calls == 0


def test_another_search_and_damaged_scores_are_refused(place: Path, tmp_path: Path) -> None:
    search(place, tmp_path / "out", Score((0.3, 0.7)), evaluations=2)
    with pytest.raises(UsageError, match="a different options"):
        search(place, tmp_path / "out", Score((0.3, 0.7)), "ties", evaluations=2)
    path = tmp_path / "out.search" / "scores.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(DamagedFileError, match=r"scores\.jsonl, line 1"):
        search(place, tmp_path / "out", Score((0.3, 0.7)), evaluations=2)


def test_what_cannot_be_searched_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="search with 'linear'"):
        search(place, tmp_path / "out", Score((0, 0)), "weighted")
    asked = Search(Score((0, 0)), "a score")
    with pytest.raises(UsageError, match="no weights to search"):
        search_merge(place / "base", [place / "one"], tmp_path / "out", MergeOptions(), asked)
    few = Search(lambda _: np.zeros(3), "three items")
    with pytest.raises(UsageError, match=r"3 items; .* at least 8"):
        search_merge(place / "base", [place / "one", place / "two"], tmp_path / "out", MergeOptions(), few)
