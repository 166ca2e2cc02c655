"""The examination of a workspace: paired with the natural mixture, kept, and made again where it is damaged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from armillary.corpus import Corpus
from armillary.evaluate.cloze import METRIC, TASK
from armillary.evaluate.results import Examination, read_examination, write_examination
from armillary.path import Evidence
from armillary.path.examination import FOLDER, Examined, examine, score_rows
from armillary.recipe import ArmillaryError, ForeignFileError, read_json, write_sealed
from armillary.store import Store
from armillary.study import TargetOutcome


@pytest.fixture
def made(finished: tuple[Path, Evidence]) -> tuple[Path, TargetOutcome]:
    folder, evidence = finished
    assert evidence.target is not None
    return folder, evidence.target


def opened(folder: Path) -> tuple[Corpus, Store]:
    (corpus,) = (path.parent for path in folder.glob("corpus/*/manifest.json"))
    return Corpus.open(corpus), Store(folder / "store")


def test_the_published_model_and_the_natural_mixture_answer_the_same_items(made: tuple[Path, TargetOutcome]) -> None:
    folder, _ = made
    published, natural = (read_examination(folder / FOLDER / arm) for arm in ("published", "natural"))
    assert [row.id for row in published.items[TASK]] == [row.id for row in natural.items[TASK]]
    assert published.model["run"] != natural.model["run"]
    summary = read_json(folder / "summary.json", "summary", "")["examination"]
    # the target holds a domain whose texts are too short for an item
    assert [row["subset"] for row in summary] == ["total", *dict.fromkeys(r.subset for r in published.items[TASK])]
    total = summary[0]
    right, others = (sum(row.scores[METRIC] for row in found.items[TASK]) for found in (published, natural))
    assert total["n"] == len(published.items[TASK]) > 20
    assert total["value"] == pytest.approx(right / total["n"])
    assert total["difference"] == pytest.approx((right - others) / total["n"])
    assert total["difference_low"] <= total["difference"] <= total["difference_high"]


def test_the_target_is_the_mean_of_its_domains_with_their_weights(made: tuple[Path, TargetOutcome]) -> None:
    folder, _ = made
    examined = Examined(*(read_examination(folder / FOLDER / arm) for arm in ("published", "natural")))
    rows = {row.subset: row for row in score_rows(examined, {"sea": 0.7, "code": 0.3})}
    assert list(rows) == ["total", "target", "sea", "code"]
    for name in ("value", "reference", "difference"):
        weighted = 0.7 * getattr(rows["sea"], name) + 0.3 * getattr(rows["code"], name)
        assert getattr(rows["target"], name) == pytest.approx(weighted)
    target = rows["target"]
    assert target.n == rows["total"].n and 0 <= target.low <= target.value <= target.high <= 1
    assert target.difference_low <= target.difference <= target.difference_high
    (_, alone, *_) = score_rows(examined, {"sea": 1.0})
    assert alone == replace(rows["sea"], subset="target")
    even = {name: rows[name].n / rows["total"].n for name in ("sea", "code")}
    assert "target" not in {row.subset for row in score_rows(examined, even)}


def test_the_scores_are_in_the_store_once(made: tuple[Path, TargetOutcome], tmp_path: Path) -> None:
    folder, outcome = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    corpus, store = opened(copy)
    assert outcome.published is not None
    for _ in range(2):
        recorded = store.examinations()
        assert set(recorded) == {read_examination(copy / FOLDER / arm).model["run"] for arm in ("published", "natural")}
        ((_, row),) = recorded[outcome.published]
        assert row["results"][0]["task"] == TASK and row["cost"]["prompt_tokens"] > 0
        examine(outcome, corpus, store, copy)
    published = read_examination(copy / FOLDER / "published")
    assert published.backend["engine"] == "native" and published.backend["precision"] == "float32"
    store.close()


def alike(first: Examination, second: Examination) -> bool:
    """Equal but for the time that it took."""
    return replace(first, cost={}) == replace(second, cost={})


def test_answers_are_used_again_and_damaged_ones_made_again(made: tuple[Path, TargetOutcome], tmp_path: Path) -> None:
    folder, outcome = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    corpus, store = opened(copy)
    place = copy / FOLDER / "published"
    before = read_examination(place)
    # an answer that no model gives shows whether the file is read or made again
    marked = replace(before, backend={"mark": "kept"})
    write_examination(place, marked)
    found = examine(outcome, corpus, store, copy)
    assert found is not None and found.published.backend == {"mark": "kept"}

    items = place / "items" / f"{TASK}.jsonl"
    items.write_bytes(items.read_bytes()[:-40])
    found = examine(outcome, corpus, store, copy)
    assert found is not None and alike(found.published, before) and found.published == read_examination(place)

    # answers of another run are not those of this one
    write_examination(place, replace(before, model={**before.model, "run": "another"}))
    found = examine(outcome, corpus, store, copy)
    assert found is not None and alike(found.published, before)
    store.close()


def test_answers_of_a_newer_version_are_refused_and_kept(made: tuple[Path, TargetOutcome], tmp_path: Path) -> None:
    folder, outcome = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    corpus, store = opened(copy)
    file = copy / FOLDER / "natural" / "results.json"
    document = read_json(file, "results", "")
    document.pop("sha256", None)
    write_sealed(file, {**document, "format": 99})
    kept = file.read_bytes()
    with pytest.raises(ForeignFileError):
        examine(outcome, corpus, store, copy)
    assert file.read_bytes() == kept
    store.close()


def test_a_published_run_on_the_natural_mixture_is_examined_alone(
    made: tuple[Path, TargetOutcome], tmp_path: Path
) -> None:
    folder, outcome = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    corpus, store = opened(copy)
    alone = outcome.model_copy(update={"arms": [arm for arm in outcome.arms if arm.name != "natural"]})
    found = examine(alone, corpus, store, copy)
    assert found is not None and found.natural is None
    assert all(row.reference is None and row.p is None for row in score_rows(found, {"voyage": 0.7, "code": 0.3}))
    store.close()


def test_weights_that_are_gone_end_the_examination_with_their_name(
    made: tuple[Path, TargetOutcome], tmp_path: Path
) -> None:
    folder, outcome = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    corpus, store = opened(copy)
    assert outcome.published is not None
    shutil.rmtree(copy / FOLDER)
    (store.run_folder(outcome.published) / "weights.safetensors").write_bytes(b"torn")
    (store.run_folder(outcome.published) / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ArmillaryError, match="safetensors"):
        examine(outcome, corpus, store, copy)
    store.close()
