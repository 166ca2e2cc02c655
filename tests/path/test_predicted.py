"""The prediction of a gain is in the store before its run; the journal proves it, and a change is found."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tiny_teaching import make

from armillary.path.predicted import teach_and_judge
from armillary.path.taught import teaching_part, write_page
from armillary.path.teach import Step
from armillary.path.verify import verify
from armillary.recipe import ArmillaryError, read_sealed, write_sealed
from armillary.store import Store


@pytest.fixture
def copied(taught: tuple[Path, list[Step]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught[0] / "out", tmp_path / "out", symlinks=True))


def verdict_of(out: Path) -> dict[str, Any]:
    return read_sealed(out / "gain" / "verdict.json", "verdict", 1, "")


def test_the_journal_has_prediction_start_result_and_verdict_in_this_order(copied: Path) -> None:
    verdict = verdict_of(copied)
    numbers = [verdict["journal"][kind] for kind in ("prediction", "start", "result", "verdict")]
    assert numbers == sorted(numbers) and verdict["before_the_run"] and not verdict["problems"]
    with closing(Store(copied / "store")) as store:
        prediction = store.prediction(verdict["run"])
        assert prediction is not None and prediction["parts"] == [3, 6, 12] and prediction["set"] == "held-out"
        assert store.verdict(verdict["run"]) is not None and store.chain().head == verdict["head"]
        assert store.run_folder(verdict["run"]).resolve() == (copied / "sft" / "run").resolve()
    assert not verify(copied).problems


def test_the_report_says_what_the_journal_proves(taught: tuple[Path, list[Step]], copied: Path) -> None:
    part = teaching_part(copied, taught[1])
    assert part.gain is not None and part.gain.proved
    assert [(row.model, row.test) for row in part.needs] == [("sft", "held-out"), ("sft", "harder")]
    assert part.needs[0].items == 6 and part.needs[0].needed > 400 and part.needs[0].against == "base"
    said = {"en": ("journal proves the order", "items needed"), "zh": ("存储的日志证明了先后次序", "所需题数")}
    for language, words in said.items():
        html = write_page(copied, "tiny", taught[1], language).read_text(encoding="utf-8")
        assert all(word in html for word in words)


@pytest.mark.slow
def test_a_changed_prediction_is_found(copied: Path, taught: tuple[Path, list[Step]], tiny_hf: Path) -> None:
    recipe = make(taught[0], tiny_hf)
    place = copied / "gain" / "prediction.json"
    document = read_sealed(place, "prediction", 1, "")
    before = place.read_bytes()
    write_sealed(place, {**document, "scores": [0.5, 0.6, 0.7]})
    with pytest.raises(ArmillaryError, match="never rewritten"):
        teach_and_judge(recipe, copied)
    place.write_bytes(before)
    teach_and_judge(recipe, copied)
    with closing(sqlite3.connect(copied / "store" / "store.sqlite")) as database, database:
        for (name,) in database.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            database.execute(f"drop trigger {name}")
        database.execute("update predictions set content = replace(content, '0.0', '0.9')")
    assert any("changed after it was recorded" in str(problem) for problem in verify(copied).problems)
    with pytest.raises(ArmillaryError, match="changed after it was recorded"):
        teach_and_judge(recipe, copied)


def test_a_run_that_began_before_its_prediction_was_recorded_proves_nothing(
    copied: Path, taught: tuple[Path, list[Step]], tiny_hf: Path
) -> None:
    shutil.rmtree(copied / "store")
    steps = teach_and_judge(make(taught[0], tiny_hf), copied)
    assert verdict_of(copied)["before_the_run"] is False
    part = teaching_part(copied, steps)
    assert part.gain is not None and part.gain.proved is False
