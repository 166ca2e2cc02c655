"""The lesson at the end of a recipe: recorded before and after, given once, published, and never in the way."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from formula_runs import make_lab, make_recipe

from armillary.corpus import Corpus
from armillary.generate import BackendOptions, Dialogue, Sampling, open_backend
from armillary.launch import Job
from armillary.model import export_hf, load_weights
from armillary.path import lesson as module
from armillary.path import lines
from armillary.path.lesson import CHAT, FOLDER, Pupil, check_lesson, give_lesson
from armillary.path.taught import Taught, brief
from armillary.post.problems import Language, Problem, family
from armillary.publish import check_lineage, origins
from armillary.recipe import ArmillaryError, CorpusSpec, Edge, Lesson, UsageError
from armillary.study import Lab
from armillary.study.lab import Annealing, RunSize
from armillary.train import InterruptedRunError

_LESSON = {
    "questions": {"families": ["nod"], "items": 24, "held_out": 8, "harder": 4},
    "sft": {"epochs": 20, "lr": 1e-2, "batch_tokens": 256, "precision": "fp32"},
    "max_new_tokens": 24,  # the tiny tokenizer has few words
}


def nod(rng: Random, level: int, language: Language) -> Problem:
    """A task that a model of a few hundred parameters learns in a second: there is one answer."""
    number = rng.randint(0, 10**level * 100)
    text = f"{number}?" if language == "en" else f"{number}吗？"
    return Problem(text, "7", {"kind": "math"}, (), number)


@pytest.fixture(scope="module", autouse=True)
def nodding() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(family._FAMILIES, "nod", family.Family("nod", "math", nod, lambda text: "7"))
        yield


def prepared(corpus: Corpus, spec: CorpusSpec, folder: Path, **changes: Any) -> tuple[Lab, Pupil]:
    """A lab with one finished run, whose model is published in ``folder/model``."""
    recipe = make_recipe(spec).model_copy(update={"lesson": Lesson.model_validate({**_LESSON, **changes})})
    lab = make_lab(recipe, corpus, folder)
    lab = replace(lab, plan=lab.plan.model_copy(update={"budget": None}))
    option = Annealing(share=0.2, shape="linear")
    weights = {domain: 1 / len(corpus.training_domains) for domain in corpus.training_domains}
    run = lab.annealed(RunSize(lab.shape("base", 2), 20, 3), option, {**weights, "sky": weights["sky"]}, 1)
    lab.executor.run("target", [Job(run)], lambda *_: None)
    model = load_weights(lab.store.run_folder(run.id) / "model.safetensors", run.model)
    export_hf(
        model,
        folder / "model",
        tokenizer_file=corpus.tokenizer_file,
        end_token=corpus.manifest.end_of_text,
        context_length=128,
    )
    edges = [Edge(f"run:{run.id}", "trained on", f"corpus:{corpus.hash}")]
    lineage = {"edges": edges, "corpus": {"hash": corpus.hash, "domains": {}}}
    return lab, Pupil(run.id, folder / "model", lineage)


@pytest.fixture(scope="module")
def given(
    tiny_corpus: Corpus, tiny_corpus_spec: CorpusSpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Lab, Pupil, Path, Taught]:
    folder = tmp_path_factory.mktemp("lesson")
    lab, pupil = prepared(tiny_corpus, tiny_corpus_spec, folder)
    return lab, pupil, folder, give_lesson(lab, pupil, folder)


def test_the_model_learns_and_answers_as_a_chat_model(given: tuple[Lab, Pupil, Path, Taught]) -> None:
    lab, _, folder, found = given
    rows = {(row.model, row.test): row for row in found.part.scores if row.subset is None}
    assert rows["base", "held-out"].value == 0 and rows["sft", "held-out"].value > 0.8 and found.kept == "sft"
    after = rows["sft", "held-out"]
    assert after.difference_low is not None and after.difference_low > 0 and "harder" in {test for _, test in rows}
    backend = open_backend(str(folder / CHAT), BackendOptions())
    try:
        assert "7" in "".join(Dialogue(backend, Sampling(24)).say("12?"))
    finally:
        backend.close()
    assert {talk.question[-1] for talk in found.part.talks} == {"?", "？"}
    forgotten = {row.domain: row for row in found.part.forgetting}
    assert set(forgotten) == {*lab.corpus.domains, "target"}
    assert "of 8 held-out questions right before" in lines.lesson(found)
    assert json.dumps(brief(found))


def test_prediction_and_verdict_are_records_of_the_store(given: tuple[Lab, Pupil, Path, Taught]) -> None:
    lab, _, _, found = given
    kinds = [entry.kind for entry in lab.store.chain().entries]
    assert kinds.count("prediction") == kinds.count("verdict") == 1
    assert kinds.index("prediction") < kinds.index("verdict")
    assert lab.store.chain().problems == ()
    # one answer to all questions of a kind is at chance whatever the score: nothing to predict
    assert found.part.gain is not None and found.part.gain.chance == 1.0 and found.part.gain.inside is None


def test_the_card_and_the_lineage_lead_back_to_the_base(given: tuple[Lab, Pupil, Path, Taught]) -> None:
    lab, pupil, folder, found = given
    document = check_lineage(folder / CHAT)
    assert document["run"] == found.run and document["base"]["run"] == pupil.run
    assert "/" not in document["spec"]["start"]["weights"]
    back = origins(folder / CHAT / "model.safetensors")
    assert [f"run:{found.run}", f"run:{pupil.run}", f"corpus:{lab.corpus.hash}"] == [
        node for node in back if node.startswith(("run:", "corpus:"))
    ]
    card = (folder / CHAT / "README.md").read_text(encoding="utf-8")
    assert "armillary chat" in card and "held-out" in card and "nod" in card


def test_called_again_it_does_nothing(given: tuple[Lab, Pupil, Path, Taught]) -> None:
    lab, pupil, folder, found = given
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")}
    assert give_lesson(lab, pupil, folder) == found
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_lost_chat_model_is_published_again_and_a_foreign_one_is_kept(
    given: tuple[Lab, Pupil, Path, Taught],
) -> None:
    lab, pupil, folder, found = given
    shutil.rmtree(folder / CHAT)
    assert give_lesson(lab, pupil, folder) == found
    (folder / CHAT / "README.md").write_text("edited by hand")
    give_lesson(lab, pupil, folder)
    assert (folder / "chat.kept-1" / "README.md").read_text() == "edited by hand"
    shutil.rmtree(folder / CHAT)
    (folder / CHAT).mkdir()
    (folder / CHAT / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not published from here"):
        give_lesson(lab, pupil, folder)
    assert (folder / CHAT / "mine.txt").read_text() == "mine"
    shutil.rmtree(folder / CHAT)


@pytest.mark.slow
def test_stopped_and_failed_it_resumes_with_what_was_done(
    given: tuple[Lab, Pupil, Path, Taught],
    tiny_corpus: Corpus,
    tiny_corpus_spec: CorpusSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = given[3]
    lab, pupil = prepared(tiny_corpus, tiny_corpus_spec, tmp_path)

    def stops(*_: Any) -> None:
        raise InterruptedRunError("stopped")

    def full(*_: Any) -> Any:
        raise ArmillaryError("No space left on device")

    with pytest.raises(InterruptedRunError):  # before anything is made
        give_lesson(replace(lab, progress=stops), pupil, tmp_path)
    for name in ("teaching_part", "publish_chat"):  # all is trained; the outcome, or the chat folder, is missing
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(ArmillaryError, match="No space"):
                give_lesson(lab, pupil, tmp_path)
        assert not (tmp_path / CHAT).exists()
    again = give_lesson(lab, pupil, tmp_path)
    assert [row.value for row in again.part.scores] == [row.value for row in found.part.scores]
    weights = (tmp_path / CHAT / "model.safetensors").read_bytes()
    # also where all its files are gone: it is given again, to the same weights
    shutil.rmtree(tmp_path / FOLDER)
    assert give_lesson(lab, pupil, tmp_path) == again and not (tmp_path / FOLDER).exists()
    shutil.rmtree(tmp_path / CHAT)
    assert give_lesson(lab, pupil, tmp_path) == again
    assert (tmp_path / CHAT / "model.safetensors").read_bytes() == weights
    assert lab.store.chain().problems == ()


@pytest.mark.slow
def test_killed_at_any_point_it_loses_nothing(
    given: tuple[Lab, Pupil, Path, Taught], tiny_corpus: Corpus, tiny_corpus_spec: CorpusSpec, tmp_path: Path
) -> None:
    found, left = given[3], 0
    lab, pupil = prepared(tiny_corpus, tiny_corpus_spec, tmp_path)
    for calls in range(1, 2000, 23):
        count = itertools.count(1)

        def dies(*_: Any, count: Iterator[int] = count, calls: int = calls) -> None:
            if next(count) == calls:
                raise KeyboardInterrupt

        try:
            again = give_lesson(replace(lab, progress=dies), pupil, tmp_path)
        except KeyboardInterrupt:
            left += 1
            assert not (tmp_path / CHAT).exists()
        else:
            break
    assert left > 3
    assert again.part.scores == found.part.scores
    assert lab.store.chain().problems == ()
    assert [entry.kind for entry in lab.store.chain().entries].count("prediction") == 1


def test_a_lesson_after_which_nothing_is_better_publishes_no_chat_model(
    tiny_corpus: Corpus, tiny_corpus_spec: CorpusSpec, tmp_path: Path
) -> None:
    said: list[str] = []
    lab, pupil = prepared(tiny_corpus, tiny_corpus_spec, tmp_path, sft={**_LESSON["sft"], "epochs": 0.1, "lr": 1e-6})
    found = give_lesson(replace(lab, say=said.append), pupil, tmp_path)
    assert found.kept == "base" and not (tmp_path / CHAT).exists()
    assert any("no chat model is published" in text for text in said)


def test_the_passes_fit_into_the_share_of_the_budget(
    tiny_corpus: Corpus, tiny_corpus_spec: CorpusSpec, tmp_path: Path
) -> None:
    lab, pupil = prepared(tiny_corpus, tiny_corpus_spec, tmp_path)
    lesson = lab.recipe.lesson
    assert lesson is not None

    def passes(budget: str | None, rate: float, name: str) -> float:
        plan = lab.plan.model_copy(update={"budget": budget, "rates": {"base/2": rate}})
        (tmp_path / name).mkdir()
        return module._epochs(replace(lab, plan=plan), lesson, pupil.folder, tmp_path / name)

    assert passes(None, 1.0, "a") == passes("100h", 1e5, "b") == lesson.sft.epochs
    few = passes("100s", 300.0, "c")
    assert 0 < few < lesson.sft.epochs
    assert passes("200s", 300.0, "d") == pytest.approx(2 * few, rel=0.06)  # two digits of each
    assert passes("1e9flops", 300.0, "e") < passes("2e9flops", 300.0, "f") < lesson.sft.epochs


def test_an_unknown_family_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(UsageError, match="nearest: 'largest'"):
        check_lesson(Lesson.model_validate({"questions": {"families": ["larges"]}}))
