"""Pairs selected by a base model's likelihoods, and as many at random: both conditions hold, kills lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armillary.post.formats import read_pairs
from armillary.post.select import Selection, select_pairs
from armillary.recipe import UsageError

TEXTS = (
    "The sky is blue",
    "The sea is wide",
    "one",
    "two three four",
    "def add(x, y)",
    "天是蓝的",
    "12 * 3 = 36",
    "zq#",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("select") / "pairs.jsonl"
    rows = [
        {"prompt": f"{a} and {b}", "chosen": one, "rejected": other}
        for a, one in enumerate(TEXTS)
        for b, other in enumerate(TEXTS)
        if one != other
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, rows[3]]))
    return path


@pytest.fixture(scope="module")
def found(data: Path, tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return select_pairs(data, tiny_hf, tmp_path_factory.mktemp("selected") / "out", Selection((0.25, 0.75), 0.5))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_both_conditions_hold_for_what_is_selected_and_for_nothing_else(found: Any) -> None:
    everything, selected = rows_of(found.selected.parent / "items.jsonl"), rows_of(found.selected)
    assert len(everything) == len(TEXTS) * (len(TEXTS) - 1)  # a pair given twice counts once
    chosen, rejected = (np.array([row["notes"]["base"][name] for row in everything]) for name in ("chosen", "rejected"))
    low, high = np.quantile(chosen, (0.25, 0.75))
    good = (chosen >= low) & (chosen <= high) & (rejected >= np.quantile(rejected, 0.5))
    assert [row["id"] for row in selected] == [row["id"] for row, kept in zip(everything, good, strict=True) if kept]
    assert 0 < len(selected) < len(everything)
    assert found.counts["means"]["selected"]["rejected"] > found.counts["means"]["all"]["rejected"]
    assert len(list(read_pairs(found.selected))) == len(selected)


def test_the_random_selection_has_equal_size_and_depends_on_its_seed_alone(
    found: Any, data: Path, tiny_hf: Path, tmp_path: Path
) -> None:
    drawn = [row["id"] for row in rows_of(found.random)]
    assert len(set(drawn)) == len(drawn) == found.counts["selected"]
    other = select_pairs(data, tiny_hf, tmp_path / "other", Selection((0.25, 0.75), 0.5, seed=1))
    assert other.selected.read_bytes() == found.selected.read_bytes()
    assert other.random.read_bytes() != found.random.read_bytes()


def test_a_killed_selection_goes_on_and_a_finished_one_is_returned(
    found: Any, data: Path, tiny_hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armillary.post.select.GROUP", 20)
    options = Selection((0.25, 0.75), 0.5)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            select_pairs(data, tiny_hf, tmp_path / "out", options, killed)
    again = select_pairs(data, tiny_hf, tmp_path / "out", options)
    assert again.counts["selected"] == found.counts["selected"]
    assert [r["id"] for r in rows_of(again.random)] == [r["id"] for r in rows_of(found.random)]
    assert select_pairs(data, tiny_hf, tmp_path / "out", options, killed) == again
    before = again.random.read_bytes()
    again.random.write_text("torn")
    again.selected.unlink()
    assert select_pairs(data, tiny_hf, tmp_path / "out", options, killed) == again
    assert again.random.read_bytes() == before and again.selected.exists()
    with pytest.raises(UsageError, match=r"seed was 0 and is 4"):
        select_pairs(data, tiny_hf, tmp_path / "out", Selection((0.25, 0.75), 0.5, seed=4))


def test_what_cannot_be_selected_is_refused(data: Path, tiny_hf: Path, tmp_path: Path) -> None:
    for wrong in ({"chosen": (0.9, 0.2)}, {"chosen": (0.1, 1.2)}, {"rejected": 1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Selection(**wrong)
    one = tmp_path / "one.jsonl"
    one.write_text(data.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert select_pairs(one, tiny_hf, tmp_path / "one").counts["selected"] == 1
    one.write_text('{"prompt": "a", "chosen": "<|end|>", "rejected": "b"}\n')
    with pytest.raises(UsageError, match=r"one\.jsonl:1"):
        select_pairs(one, tiny_hf, tmp_path / "two")
