"""Runs over supervised examples: alone, resumed, in stacks and refused; what they compute is the weighted mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from armillary.corpus import Example, write_examples
from armillary.model import Transformer, load_weights
from armillary.recipe import RunSpec, Supervised, UsageError, Validation, read_result
from armillary.train import InterruptedRunError, train_fleet, train_run
from armillary.train.check import check_run
from armillary.train.fleet import Assignment


@pytest.fixture(scope="module")
def spec(make_spec: Any, tiny_corpus: Any) -> RunSpec:
    """Answers to one-word questions: the model learns which word follows, and to stop."""
    examples = []
    for number in range(60):
        question = [20 + number % 6, 30 + number % 4]
        answer = [100 + number % 6, *range(110, 110 + number % 5)]
        examples.append(Example([*question, *answer], [0.0, 0.0] + [1.0] * len(answer)))
    written = write_examples(tiny_corpus, "answers", examples)
    fields = make_spec(steps=12, validation=Validation(windows=4)).model_dump(mode="json")
    changes = {"mixture": [], "objective": {"kind": "supervised", "examples": written.hash}, "accumulation": 2}
    return RunSpec.model_validate(fields | changes | {"batch_sequences": 4, "context_length": 32})


def test_the_loss_is_the_weighted_mean_of_its_examples(spec: RunSpec, tiny_corpus: Any, tmp_path: Any) -> None:
    import pyarrow.parquet as pq

    result = train_run(spec, tiny_corpus, tmp_path / "run")
    losses = [row["loss"] for row in pq.read_table(tmp_path / "run" / "metrics.parquet").to_pylist()]
    from armillary.corpus import data_order

    batch = data_order(spec, tiny_corpus).batch(0)
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    total = count = 0.0
    for tokens, weights, documents in zip(batch.tokens, batch.weights, batch.documents, strict=True):
        for number in set(documents.tolist()):
            places = (documents == number).nonzero()[0]
            part = torch.from_numpy(tokens[places[0] : places[-1] + 2])[None]
            with torch.no_grad():
                logits = model(part[:, :-1])[0]
            each = torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="none").double()
            total += float((each * torch.from_numpy(weights[places])).sum())
            count += float(weights[places].sum())
    assert losses[0] == pytest.approx(total / count, abs=1e-5)
    assert losses[-1] < losses[0] - 0.5
    assert result.epochs == {"answers": pytest.approx(12 * 4 / 17, rel=0.5)}
    assert set(result.loss) == set(tiny_corpus.domains)  # validation stays that of the corpus
    assert load_weights(tmp_path / "run" / "model.safetensors", spec.model)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    spec: RunSpec, tiny_corpus: Any, tmp_path: Any, undisturbed: Any, outcome: Any
) -> None:
    steps: list[int] = []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path / "run", progress=steps.append, stop=lambda: len(steps) == 5)
    train_run(spec, tiny_corpus, tmp_path / "run")
    assert outcome(tmp_path / "run") == undisturbed(spec)


def test_members_of_a_stack_are_what_they_are_alone(
    spec: RunSpec, tiny_corpus: Any, tmp_path: Any, undisturbed: Any
) -> None:
    specs = [spec.model_copy(update={"seed": seed}) for seed in (spec.seed, 5, 6)]
    runs = [Assignment(one, tmp_path / one.id) for one in specs]
    found = dict(train_fleet(runs, tiny_corpus, 3))
    for one in specs:
        alone = undisturbed(one)["result"]
        assert read_result(tmp_path / one.id) == found[one.id]
        for domain, loss in alone["loss"].items():
            assert found[one.id].loss[domain] == pytest.approx(loss, abs=1e-4)
        assert found[one.id].train_loss == pytest.approx(alone["train_loss"], abs=1e-4)


def test_stacks_keep_objectives_apart(spec: RunSpec, make_spec: Any, tiny_corpus: Any, tmp_path: Any) -> None:
    plain = make_spec(batch_sequences=4, context_length=32, accumulation=2, steps=12)
    runs = [Assignment(plain, tmp_path / "plain"), Assignment(spec, tmp_path / "other")]
    found = dict(train_fleet(runs, tiny_corpus, 2))
    assert isinstance(found[spec.id], UsageError)


def test_a_run_without_its_examples_is_refused_before_it_begins(spec: RunSpec, tiny_corpus: Any, tmp_path: Any) -> None:
    missing = spec.model_copy(update={"objective": Supervised(examples="0" * 16)})
    with pytest.raises(UsageError, match="no examples 0000000000000000; it has"):
        train_run(missing, tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="raise context_length"):
        check_run(spec.model_copy(update={"context_length": 4}), tiny_corpus)
