"""Diversity separates sets that repeat themselves from sets that do not, whatever their sizes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from armillary.cli.verbs import app
from armillary.generate import Message
from armillary.post import Item, compare_diversity, to_line
from armillary.post.diversity import hashed_embedding
from armillary.recipe import UsageError

WORDS = [
    a + b for a in ("ba", "de", "fi", "go", "lu", "mi", "no", "pa", "ru", "te") for b in ("n", "rk", "st", "ll", "mp")
]


def written(path: Path, texts: list[str], family: str = "f") -> Path:
    path.write_bytes(b"".join(to_line(Item((Message("user", t),), family=family).to_json()) for t in texts))
    return path


def varied(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(count)]


def test_a_set_of_one_form_is_less_diverse_than_one_of_many(tmp_path: Path) -> None:
    form = [f"Tom has {n} apples and buys {n + 1} more. How many apples does Tom have now?" for n in range(200)]
    narrow, wide = compare_diversity([written(tmp_path / "a", form), written(tmp_path / "b", varied(200), "g")])
    assert narrow.distinct["2"] < wide.distinct["2"] and narrow.distinct["4"] < wide.distinct["4"]
    assert narrow.spread < wide.spread and 0 <= narrow.spread <= 1
    assert narrow.coverage < wide.coverage <= 1 and narrow.effective < wide.effective
    assert (narrow.types["family"], wide.types["family"]) == ({"f": 200}, {"g": 200})


def test_the_size_of_a_set_does_not_make_it_less_diverse(tmp_path: Path) -> None:
    small, large = compare_diversity([written(tmp_path / "a", varied(150)), written(tmp_path / "b", varied(600, 1))])
    assert large.distinct["2"] == pytest.approx(small.distinct["2"], abs=0.05)
    assert large.spread == pytest.approx(small.spread, abs=0.02)


def test_numbers_do_not_depend_on_the_order_and_a_sample_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armillary.post.diversity.SAMPLE", 100)
    texts = varied(150)
    (first,) = compare_diversity([written(tmp_path / "a", texts)])
    random.Random(1).shuffle(texts)
    (second,) = compare_diversity([written(tmp_path / "a", texts)])
    assert first == second and (first.items, first.sampled) == (150, 100)


@pytest.mark.parametrize("texts", [["a"], ["a", "a"], ["?"], ["中文问题", "另一个问题"], [" x ", "y" * 5000]])
def test_small_sets_have_finite_numbers(tmp_path: Path, texts: list[str]) -> None:
    (found,) = compare_diversity([written(tmp_path / "a", texts)])
    numbers = [*found.distinct.values(), found.spread, found.coverage, found.effective]
    assert np.isfinite(numbers).all() and min(numbers) > -1e-6


def test_texts_of_one_content_are_near_in_the_embedding() -> None:
    rows = hashed_embedding(["How many apples does Tom have?", "How many apples does Ann have?", "天气怎么样", ""])
    assert rows[0] @ rows[1] > 0.5 > rows[0] @ rows[2]
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-5)


def test_an_embedding_may_be_passed_in(tmp_path: Path) -> None:
    path = written(tmp_path / "a", ["x", "y"])
    (found,) = compare_diversity([path], lambda texts: np.eye(len(texts), dtype=np.float32))
    assert found.spread == 1
    with pytest.raises(UsageError, match="returned 1 vectors for 2 texts"):
        compare_diversity([path], lambda texts: np.eye(1, dtype=np.float32))


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give at least one file"):
        compare_diversity([])
    with pytest.raises(UsageError, match="given twice"):
        compare_diversity([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(UsageError, match="has no items"):
        compare_diversity([written(tmp_path / "a", [])])


def test_the_verb_prints_json_and_writes_a_page(tmp_path: Path) -> None:
    paths = [str(written(tmp_path / name, varied(20, place))) for place, name in enumerate(("<b>", "after"))]
    result = CliRunner().invoke(app, ["post", "diversity", *paths, "--json", "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[paths[1]]["items"] == 20
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page and "<b>" not in page and "effective clusters" in page and "100.0%" in page
