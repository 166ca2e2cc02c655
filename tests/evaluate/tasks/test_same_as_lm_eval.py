"""Our scores are those that lm_eval alone prints for the same model and items, whatever the batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from armillary.evaluate import Examination
from armillary.evaluate.tasks import ExamOptions, examine, prepare
from armillary.generate.open import open_backend
from armillary.generate.registry import BackendOptions

pytest.importorskip("lm_eval")


def lm_eval_alone(folder: Path, config: Path, options: ExamOptions, context: int = 2048) -> dict[str, Any]:
    """What lm_eval's own Hugging Face model scores on the task of a configuration file."""
    import lm_eval.tasks
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32", "max_length": context},
        tasks=[str(config)],
        num_fewshot=options.shots,
        gen_kwargs={"max_gen_toks": options.max_new_tokens} if options.max_new_tokens else None,
        batch_size=3,
        limit=options.limit,
        bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_path=config.parent, include_defaults=False),
        device="cpu",
    )
    assert found is not None
    return dict(found)


def ours(
    folder: Path, tasks: list[str], data: Path, options: ExamOptions, batch: int = 1, context: int | None = None
) -> Examination:
    """An examination through the transformers backend."""
    opening = BackendOptions(batch_size=batch, device="cpu", context=context)
    backend = open_backend(str(folder), opening, "transformers")
    try:
        return examine(backend, prepare(tasks, data, options), options)
    finally:
        backend.close()


def assert_same(found: dict[str, Any], examination: Examination, name: str, task: str) -> None:
    """Each total of lm_eval is ours, and each item."""
    totals = {r.metric: r.value for r in examination.results if r.task == task and r.subset in (task, name)}
    samples = found["samples"][name]
    filters = {sample["filter"] for sample in samples}
    for key, value in found["results"][name].items():
        metric, _, filter_ = key.partition(",")
        if not filter_ or "stderr" in metric:
            continue
        assert totals[key if len(filters) > 1 else metric] == value
        rows = [s for s in samples if s["filter"] == filter_]
        for sample, item in zip(rows, examination.items[task], strict=True):
            assert item.scores[key if len(filters) > 1 else metric] == sample[metric]
            if len(sample["resps"]) == 1:
                assert item.outputs == tuple(sample["resps"][0])


def over_files(original: str, place: Path, **splits: str) -> Path:
    """A configuration file of lm_eval that is ``original``, below its tasks, over local files in ``place``."""
    import lm_eval.tasks

    config = {
        "include": str(Path(lm_eval.tasks.__file__).parent / original),
        "dataset_path": "csv" if next(iter(splits.values())).endswith("csv") else "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(place / file) for split, file in splits.items()},
            "cache_dir": str(place / "cache"),
        },
    }
    (place / "alone").mkdir()
    path = place / "alone" / "task.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_generation_task(folder: Path, data: Path) -> None:
    config = over_files("gsm8k/gsm8k.yaml", data / "gsm8k", train="train.jsonl", test="test.jsonl")
    options = ExamOptions(shots=2, max_new_tokens=24)
    examination = ours(folder, ["gsm8k"], data, options, 6)
    assert len(examination.items["gsm8k"]) == 6
    assert_same(lm_eval_alone(folder, config, options), examination, "gsm8k", "gsm8k")


def test_a_likelihood_task(folder: Path, data: Path) -> None:
    original = "cmmlu/cmmlu_anatomy.yaml"
    config = over_files(original, data / "cmmlu", dev="dev/anatomy.csv", test="test/anatomy.csv")
    options = ExamOptions(shots=3)
    examination = ours(folder, ["cmmlu"], data, options)
    assert_same(lm_eval_alone(folder, config, options), examination, "cmmlu_anatomy", "cmmlu")


@pytest.mark.parametrize("context", [96, pytest.param(110, marks=pytest.mark.slow)])
def test_prompts_that_leave_no_room_for_the_answer_lose_their_start(folder: Path, data: Path, context: int) -> None:
    config = over_files("gsm8k/gsm8k.yaml", data / "gsm8k", train="train.jsonl", test="test.jsonl")
    options = ExamOptions(shots=2, max_new_tokens=24, limit=4)
    examination = ours(folder, ["gsm8k"], data, options, 2, context)
    assert_same(lm_eval_alone(folder, config, options, context), examination, "gsm8k", "gsm8k")
    cuts = [item.context_cut for item in examination.items["gsm8k"]]
    assert {result.context_cut for result in examination.results} == {sum(cut > 0 for cut in cuts) / 4}
    assert any(cuts) if context == 110 else all(cuts)


def test_choices_after_a_context_that_is_too_long_are_scored_as_in_lm_eval(folder: Path, data: Path) -> None:
    config = over_files("cmmlu/cmmlu_anatomy.yaml", data / "cmmlu", dev="dev/anatomy.csv", test="test/anatomy.csv")
    options = ExamOptions(shots=1)
    found, examination = (
        lm_eval_alone(folder, config, options, 40),
        ours(folder, ["cmmlu"], data, options, 1, 40),
    )
    assert_same(found, examination, "cmmlu_anatomy", "cmmlu")
    for sample, item in zip(found["samples"]["cmmlu_anatomy"], examination.items["cmmlu"], strict=True):
        likelihoods = [response[0][0] for response in sample["resps"]]
        assert [float(output) for output in item.outputs] == pytest.approx(likelihoods, rel=1e-6)
        assert item.context_cut > 0


def test_a_score_does_not_move_with_the_batch(folder: Path, data: Path) -> None:
    options = ExamOptions(shots=1, max_new_tokens=12)
    tasks = ["gsm8k", "ceval", "bbh_zeroshot_boolean_expressions"]
    one, seven, many = (ours(folder, tasks, data, options, batch) for batch in (1, 7, 32))
    for other in (seven, many):
        assert other.results == one.results
        for task in tasks:
            for a, b in zip(one.items[task], other.items[task], strict=True):
                assert (a.id, a.answer, a.scores) == (b.id, b.answer, b.scores)


def test_a_second_examination_asks_the_same(folder: Path, data: Path) -> None:
    options = ExamOptions(shots=2, limit=3, max_new_tokens=2)
    prepared = prepare(["gsm8k"], data, options)
    backend = open_backend(str(folder), BackendOptions(device="cpu"), "transformers")
    first, second = (examine(backend, prepared, options) for _ in range(2))
    assert (first.results, first.items) == (second.results, second.items)


@pytest.mark.slow
def test_every_task_is_held_on_its_real_data(folder: Path) -> None:
    place = os.environ.get("ARMILLARY_EVALUATION")
    if not place:
        pytest.skip("ARMILLARY_EVALUATION names no folder with the data of the tasks")
    tasks = ["mmlu", "cmmlu", "bbh_zeroshot", "gsm8k", "math500", "humaneval", "mbpp", "ifeval"]
    examination = ours(folder, tasks, Path(place), ExamOptions(limit=1, shots=0, max_new_tokens=4), 8)
    counts = {task: len(items) for task, items in examination.items.items()}
    assert counts == dict.fromkeys(tasks, 1) | {"mmlu": 57, "cmmlu": 67, "bbh_zeroshot": 27}
    wholes = {result.task: result for result in examination.results if result.subset == result.task}
    assert all(0 <= wholes[task].low <= wholes[task].value <= wholes[task].high <= 1 for task in tasks)


@pytest.mark.slow
def test_a_real_model_scores_as_with_lm_eval(smollm2: Path, data: Path) -> None:
    config = over_files("gsm8k/gsm8k.yaml", data / "gsm8k", train="train.jsonl", test="test.jsonl")
    options = ExamOptions(shots=1, max_new_tokens=32)
    assert_same(lm_eval_alone(smollm2, config, options), ours(smollm2, ["gsm8k"], data, options), "gsm8k", "gsm8k")
