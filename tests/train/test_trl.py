"""Losses and gradients of pairs are those of TRL's DPOTrainer on the same batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from armillary.corpus import Example, Pair, PreferenceOrder, write_pairs
from armillary.model import import_hf
from armillary.model.weights.huggingface import names_there
from armillary.recipe import ModelShape, OptimizerSpec, Preference, RunSpec
from armillary.train import answer_log_probs
from armillary.train.engines import loss_sums, parts

trl = pytest.importorskip("trl", reason="needs the extra dev")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

pytestmark = pytest.mark.slow  # imports all of TRL

QUESTIONS = ("1 + 1 = ?", "天是", "add two and three", "The sea", "What is 12 * 3?")
ANSWERS = ("2", "蓝的", "return x + y", "is wide. The sky is blue.", "36, and not 35 = 12 * 3 - 1")
OTHERS = ("3 and four", "宽的, 海是宽的。", "x", "is blue", "35")

# ours, and TRL's loss_type, loss_weights and label_smoothing
KINDS: dict[str, tuple[dict[str, Any], list[str], list[float], float]] = {
    "sigmoid": ({}, ["sigmoid"], [1.0], 0.0),
    "sigmoid_norm": ({"loss": "sigmoid_norm"}, ["sigmoid_norm"], [1.0], 0.0),
    "ipo": ({"loss": "ipo"}, ["ipo"], [1.0], 0.0),
    "hinge": ({"loss": "hinge"}, ["hinge"], [1.0], 0.0),
    "robust": ({"loss": "robust", "label_smoothing": 0.2}, ["robust"], [1.0], 0.2),
    "sigmoid_norm + sft": ({"loss": "sigmoid_norm", "sft_weight": 0.5}, ["sigmoid_norm", "sft"], [1.0, 0.5], 0.0),
    "sigmoid + sft": ({"sft_weight": 0.5}, ["sigmoid", "sft"], [1.0, 0.5], 0.0),
    "ipo + sft": ({"loss": "ipo", "sft_weight": 2.0}, ["ipo", "sft"], [1.0, 2.0], 0.0),
}


@pytest.fixture(scope="module")
def both(tiny_hf: Path, tmp_path_factory: Any) -> Any:
    """TRL's trainer of a policy that has left its reference, and our order over the same pairs."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("trl")
    policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(tiny_hf) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.03)
    policy.save_pretrained(folder / "policy")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_hf)
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for question, chosen, rejected in zip(QUESTIONS, ANSWERS, OTHERS, strict=True)
    ]
    config = trl.DPOConfig(
        output_dir=str(folder / "out"), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.3
    )
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    prepared = list(trainer.train_dataset)
    sides = [
        Example([*row["prompt_ids"], *row[side]], [0.0] * len(row["prompt_ids"]) + [1.0] * len(row[side]))
        for row in prepared
        for side in ("chosen_ids", "rejected_ids")
    ]
    scores = list(answer_log_probs(import_hf(tiny_hf), sides))
    pairs = [Pair(*sides[i : i + 2], (scores[i], scores[i + 1])) for i in range(0, len(sides), 2)]
    about = SimpleNamespace(dtype="uint16", end_of_text_id=0)
    corpus: Any = SimpleNamespace(path=folder, hash="0" * 16, vocab_size=len(tokenizer), manifest=about)
    written = write_pairs(corpus, "pairs", "a" * 64, pairs)
    order = PreferenceOrder(written, seed=0, context_length=150, batch_sequences=1, pad=0)
    order = PreferenceOrder(written, seed=0, context_length=150, batch_sequences=order.sequences, pad=0)
    return trainer, prepared, import_hf(folder / "policy"), order


def ours(model: Any, order: PreferenceOrder, fields: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
    spec = RunSpec(
        corpus="none",
        model=model.shape,
        context_length=order.context_length,
        batch_sequences=order.batch_sequences,
        steps=1,
        mixture=(),
        optimizer=OptimizerSpec(lr=1e-3),
        seed=0,
        objective=Preference(examples="0" * 16, beta=0.3, **fields),
    )
    assert isinstance(spec.model, ModelShape)
    batch = order.batch(0).map(torch.from_numpy)
    assert batch.weight == len(QUESTIONS)
    model.zero_grad()
    means = torch.zeros(5)
    for part in parts(batch, order.batch_sequences):
        objective, sums = loss_sums(model, part, spec)
        (objective / batch.weight).backward()
        means += sums / batch.weight
    return means.tolist(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def theirs(trainer: Any, rows: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    inputs = trainer.data_collator(rows)
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    found = trainer._metrics["train"]
    names = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    return [loss.item(), *(found[name][-1] for name in names)], gradients


def assert_equal(model: Any, expected: Any, found: Any) -> None:
    (their_means, their_gradients), (means, gradients) = expected, found
    assert means == pytest.approx(their_means, abs=1e-5, rel=1e-5)
    names = names_there(model.shape)
    assert set(names) == set(gradients) and set(names.values()) == set(their_gradients)
    for name, gradient in gradients.items():
        wanted = their_gradients[names[name]]
        # where gradients are larger than 1, as much relative to the largest
        assert float((gradient - wanted).abs().max()) <= 1e-5 * max(1.0, wanted.abs().max()), name
        assert float(wanted.abs().max()) > 1e-4, name  # equal zeros would show nothing


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_losses_and_gradients_are_those_of_trl(kind: Any, both: Any) -> None:
    trainer, rows, model, order = both
    fields, trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = kind
    assert_equal(model, theirs(trainer, rows), ours(model, order, fields))


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm"])
def test_label_smoothing_takes_a_share_of_the_pair_turned_round(loss: Any, both: Any) -> None:
    trainer, rows, model, order = both
    trainer.loss_types, trainer.loss_weights = [loss], [1.0]
    turned = [{**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in rows]
    (kept, gradients), (other, others) = theirs(trainer, rows), theirs(trainer, turned)
    means = [0.9 * kept[0] + 0.1 * other[0], *kept[1:]]
    expected = means, {name: 0.9 * gradients[name] + 0.1 * others[name] for name in gradients}
    assert_equal(model, expected, ours(model, order, {"loss": loss, "label_smoothing": 0.1}))


def test_ipo_over_sequences_is_as_published(both: Any) -> None:
    """TRL has no such loss, but its margins and gradients of single pairs give its value and its gradients."""
    trainer, rows, model, order = both
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = ["sigmoid"], [1.0], 0.0
    beta = 0.3
    found = ours(model, order, {"loss": "ipo_sequence"})
    alone = [theirs(trainer, [row]) for row in rows]
    margins = torch.tensor([means[1] for means, _ in alone])
    # the square of the difference of gains from 1 / (2 beta)
    off = margins / beta - 1 / (2 * beta)
    # the slope of that by the gain, over the slope of the sigmoid loss by the gain
    slopes = (2 * off / (-beta * torch.sigmoid(-margins))).tolist()
    gradients = {
        name: sum(slope * each[name] for slope, (_, each) in zip(slopes, alone, strict=True)) / len(rows)
        for name in alone[0][1]
    }
    (_, *measured), _ = theirs(trainer, rows)
    assert_equal(model, ([float(off.square().mean()), *measured], gradients), found)
