"""Optimizers on one rank: what PyTorch's own give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from armillary.model import Transformer
from armillary.optim import LocalOptimizer, build_optimizer, set_lr
from armillary.recipe import MixturePhase, ModelShape, OptimizerSpec, RunSpec, UsageError
from armillary.train import Assignment, InterruptedRunError, Stack, stack_key, train_fleet, train_run

SHAPE = ModelShape(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=128, qk_norm=True)


def specification(**changes: Any) -> RunSpec:
    fields = {
        "corpus": "none",
        "model": SHAPE,
        "context_length": 32,
        "batch_sequences": 8,
        "steps": 20,
        "mixture": (MixturePhase(start_step=0, weights={"text": 1.0}),),
        "optimizer": OptimizerSpec(lr=3e-3, kind="muon"),
        "seed": 5,
    }
    return RunSpec(**{**fields, **changes})


def built(spec: RunSpec) -> Transformer:
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    return model


def give_gradients(models: list[Transformer], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        grad = torch.randn(parameters[0].shape, generator=generator)
        for parameter in parameters:
            parameter.grad = grad.clone()


def test_muon_on_one_rank_is_pytorchs() -> None:
    """The layers' matrices take the steps of torch.optim.Muon bit for bit, all else those of AdamW."""
    spec = specification()
    o = spec.optimizer
    ours, local, theirs = built(spec), built(spec), built(spec)
    optimizer, by_name = build_optimizer(ours, spec), LocalOptimizer(local.named_parameters(), spec)
    named = dict(theirs.named_parameters())
    matrices = [p for name, p in named.items() if name.startswith("layers.") and p.ndim == 2]
    others = [p for p in named.values() if all(p is not matrix for matrix in matrices)]
    assert len(matrices) == 7 * SHAPE.n_layers
    muon = torch.optim.Muon(
        matrices, lr=o.lr, weight_decay=o.weight_decay, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": [p for p in others if p.ndim == 2], "weight_decay": o.weight_decay},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)
    for step in range(3):
        lr = 1e-2 / (step + 1)
        give_gradients([ours, local, theirs], step)
        set_lr(optimizer, lr)
        optimizer.step()
        by_name.step(lr)
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = lr
        muon.step()
        adamw.step()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, named[name]), name
        assert torch.equal(local.get_parameter(name), named[name]), name
        for key, value in by_name.state[name].items():
            assert torch.equal(value, optimizer.state[parameter][key])


WIDE = [
    OptimizerSpec(lr=3e-3, kind="muon"),
    OptimizerSpec(lr=3e-3, kind="muon", momentum=0.8, base_width=4),
    OptimizerSpec(lr=3e-3, base_width=4, base_head_dim=4),
]


@pytest.mark.parametrize("optimizer", WIDE)
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(
    optimizer: OptimizerSpec, make_spec: Any, tiny_corpus: Any, tmp_path: Any, undisturbed: Any, outcome: Any
) -> None:
    spec = make_spec(steps=12, optimizer=optimizer)
    done: list[int] = []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path, progress=done.append, stop=lambda: len(done) == 7)
    train_run(spec, tiny_corpus, tmp_path)
    assert outcome(tmp_path) == undisturbed(spec)


def test_runs_with_a_base_width_in_a_stack(
    make_spec: Any, tiny_corpus: Any, tmp_path: Any, undisturbed: Any, outcome: Any
) -> None:
    wide = WIDE[-1]
    specs = [make_spec(seed=seed, optimizer=wide.model_copy(update={"lr": 10.0**-seed})) for seed in (2, 3)]
    assert len({stack_key(spec) for spec in [*specs, make_spec()]}) == 2
    dict(train_fleet([Assignment(spec, tmp_path / spec.id) for spec in specs], tiny_corpus, 2))
    assert all(outcome(tmp_path / spec.id) == undisturbed(spec) for spec in specs)


def test_muons_runs_are_in_no_stack(make_spec: Any) -> None:
    specs = [make_spec(seed=seed, optimizer=WIDE[0]) for seed in (1, 2)]
    assert stack_key(specs[0]) != stack_key(specs[1])
    with pytest.raises(UsageError, match="kind 'muon' by itself"):
        Stack(specs[0], 2, torch.device("cpu"))
