"""Runs over pairs of answers: what they learn and record, resumed, killed, in stacks and refused."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from victim import process, train_until_operation

from armillary.corpus import Example, Pair, write_pairs
from armillary.model import Transformer, load_weights, save_weights
from armillary.recipe import Preference, RunSpec, UsageError, Validation, read_result
from armillary.train import (
    Assignment,
    Fleet,
    InterruptedRunError,
    Stack,
    answer_log_probs,
    check_run,
    read_metrics,
    stack_key,
    start_from,
    train_fleet,
    train_run,
)

CPU = torch.device("cpu")


def answers(number: int) -> tuple[Example, Example]:
    """One question with the answer that its words ask for, and with another one."""
    question = [20 + number % 6, 30 + number % 4]
    sides = []
    for word in (100 + number % 6, 150 + number % 7):
        answer = [word, *range(110, 110 + number % 5), 0]
        sides.append(Example([*question, *answer], [0.0, 0.0] + [1.0] * len(answer)))
    return sides[0], sides[1]


@pytest.fixture(scope="module")
def spec(make_spec: Any, tiny_corpus: Any, tmp_path_factory: Any) -> RunSpec:
    base = make_spec(steps=12, validation=Validation(windows=4))
    model = Transformer(base.model)
    model.init_weights(3)
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    save_weights(model, path)
    start = start_from(path)
    both = [answers(number) for number in range(60)]
    scores = list(answer_log_probs(model, (side for pair in both for side in pair)))
    pairs = [Pair(*pair, (scores[2 * i], scores[2 * i + 1])) for i, pair in enumerate(both)]
    written = write_pairs(tiny_corpus, "answers", start.sha256, pairs)
    changes = {"mixture": [], "objective": {"kind": "preference", "examples": written.hash}, "accumulation": 2}
    fields = base.model_dump(mode="json") | changes | {"start": start.model_dump(mode="json")}
    return RunSpec.model_validate(fields | {"batch_sequences": 4, "context_length": 32})


def test_a_run_learns_which_answer_is_preferred_and_records_it(spec: RunSpec, tiny_corpus: Any, tmp_path: Path) -> None:
    result = train_run(spec, tiny_corpus, tmp_path / "run")
    rows = read_metrics(tmp_path / "run").to_pylist()
    # the start is the reference: both answers have gained nothing yet
    assert rows[0]["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
    assert rows[0]["preference/margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["preference/margin"] > 0.5 and rows[-1]["preference/accuracy"] == 1.0
    fell = rows[-1]["preference/rejected_logprob"] - rows[-1]["preference/chosen_logprob"]
    assert fell < rows[0]["preference/rejected_logprob"] - rows[0]["preference/chosen_logprob"] - 4
    assert result.measured == {key: rows[-1][key] for key in rows[-1] if key.startswith("preference/")}
    assert read_result(tmp_path / "run") == result
    assert set(result.loss) == set(tiny_corpus.domains)  # validation stays that of the corpus
    assert load_weights(tmp_path / "run" / "model.safetensors", spec.model)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    spec: RunSpec, tiny_corpus: Any, tmp_path: Path, undisturbed: Any, outcome: Any
) -> None:
    steps: list[int] = []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path / "run", progress=steps.append, stop=lambda: len(steps) == 5)
    train_run(spec, tiny_corpus, tmp_path / "run")
    assert outcome(tmp_path / "run") == undisturbed(spec)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_had_not(
    spec: RunSpec, tiny_corpus: Any, tmp_path: Path, undisturbed: Any, outcome: Any
) -> None:
    victim = process(train_until_operation, 45, spec, tiny_corpus.path, tmp_path / "killed")
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    train_run(spec, tiny_corpus, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == undisturbed(spec)


def test_stacks_refuse_preferences_by_name(spec: RunSpec, make_spec: Any, tiny_corpus: Any, tmp_path: Path) -> None:
    assert stack_key(spec) != stack_key(spec.model_copy(update={"seed": 9}))
    for refused in (
        lambda: Stack(spec, 2, CPU),
        lambda: Fleet(spec, tiny_corpus, 2),
        lambda: dict(train_fleet([Assignment(spec, tmp_path / "run")], tiny_corpus, 1)),
    ):
        with pytest.raises(
            UsageError, match="a stack does not support objective 'preference'; train such a run by itself"
        ):
            refused()
    plain = make_spec(batch_sequences=4, context_length=32, accumulation=2)
    runs = [Assignment(plain, tmp_path / "plain"), Assignment(spec, tmp_path / "other")]
    assert isinstance(dict(train_fleet(runs, tiny_corpus, 2))[spec.id], UsageError)


def test_what_a_run_cannot_train_is_refused_before_it_begins(spec: RunSpec, tiny_corpus: Any, tmp_path: Path) -> None:
    missing = spec.model_copy(update={"objective": Preference(examples="0" * 16)})
    with pytest.raises(UsageError, match="no pairs 0000000000000000; it has"):
        train_run(missing, tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="raise context_length"):
        check_run(spec.model_copy(update={"context_length": 8}), tiny_corpus)
    with pytest.raises(UsageError, match=r"start\.sha256"):
        check_run(spec.model_copy(update={"start": spec.start.model_copy(update={"sha256": "0" * 64})}), tiny_corpus)


def test_log_probabilities_of_answers_do_not_depend_on_what_is_computed_together(spec: RunSpec) -> None:
    model = Transformer(spec.model)
    model.init_weights(3)
    sides = [side for number in range(40) for side in answers(number)]
    together = list(answer_log_probs(model, sides))
    for side, found in zip(sides, together, strict=True):
        tokens = torch.tensor([list(side.tokens)])
        with torch.no_grad():
            each = model(tokens[:, :-1]).log_softmax(-1)[0].gather(1, tokens[0, 1:, None])[:, 0]
        assert found == pytest.approx(float((each * torch.tensor(side.weights[1:])).sum()), abs=2e-5)


def test_fields_that_came_later_change_no_id(spec: RunSpec) -> None:
    written = Preference(examples="0" * 16).model_dump(mode="json")
    assert written == {"kind": "preference", "examples": "0" * 16, "beta": 0.1}
    full = Preference(examples="0" * 16, loss="robust", label_smoothing=0.1, sft_weight=0.5)
    assert Preference.model_validate(full.model_dump(mode="json")) == full
    for wrong in ({"loss": "ipo", "label_smoothing": 0.1}, {"label_smoothing": 0.5}, {"beta": 0}, {"loss": "dpo"}):
        with pytest.raises(ValueError):
            Preference(examples="0" * 16, **wrong)
