"""A new optimizer is one new file: its options stand in the run's specification, and every engine takes its steps."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

import lion  # registers it
from armillary.corpus import Batch
from armillary.model import Transformer
from armillary.optim import LocalOptimizer, build_optimizer, register
from armillary.recipe import (
    Layout,
    MixturePhase,
    ModelShape,
    OptimizerOptions,
    OptimizerSpec,
    RunSpec,
    UsageError,
    register_options,
)
from armillary.train import Stack, train_step

SHAPE = ModelShape(n_layers=2, d_model=16, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=64)


def specification(**optimizer: object) -> RunSpec:
    return RunSpec(
        corpus="none",
        model=SHAPE,
        context_length=16,
        batch_sequences=4,
        steps=30,
        mixture=(MixturePhase(start_step=0, weights={"text": 1.0}),),
        optimizer=OptimizerSpec(lr=1e-3, **optimizer),
        seed=5,
    )


def test_a_registered_optimizer_trains() -> None:
    spec = specification(kind="lion", weight_decay=0.01, options={"slow": 0.9})
    model = Transformer(SHAPE)
    model.init_weights(spec.seed, spec.optimizer)
    optimizer = build_optimizer(model, spec)
    assert isinstance(optimizer, lion.Lion)
    batch = torch.arange(4 * 17).view(4, 17) % SHAPE.vocab_size
    losses = [train_step(model, optimizer, spec, step, Batch(batch))[0].item() for step in range(spec.steps)]
    assert losses[-1] < 0.7 * losses[0]


def test_its_state_is_there_from_the_beginning() -> None:
    model = Transformer(SHAPE)
    optimizer = LocalOptimizer(model.named_parameters(), specification(kind="lion"))
    assert all(list(state) == ["momentum"] for state in optimizer.state.values())


def test_options_are_a_part_of_the_run_and_of_its_id() -> None:
    plain, given = specification(kind="lion"), specification(kind="lion", options={"slow": 0.9})
    assert RunSpec.model_validate_json(given.model_dump_json()) == given
    assert given.optimizer.own == lion.LionOptions(slow=0.9)
    assert plain.optimizer.own == lion.LionOptions()
    assert len({plain.id, given.id, specification().id}) == 3


def test_optimizers_of_earlier_versions_keep_their_ids() -> None:
    assert specification().id == "5d1f41d85e4f6548"
    assert specification(kind="muon", momentum=0.9, base_width=8).id == "9e3867a67b129287"


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        ({"kind": "loin"}, "should be a registered optimizer: 'adamw', 'lion', 'muon'"),
        ({"kind": "lion", "options": {"slwo": 0.9}}, "slwo"),
        ({"kind": "lion", "options": {"slow": 1.0}}, "less than 1"),
        ({"kind": "adamw", "options": {"slow": 0.9}}, "slow"),
        ({"kind": "muon", "options": {"momentum": 0.9}}, "takes no options; its momentum is the key momentum"),
        ({"kind": "lion", "momentum": 0.9}, "belongs to kind 'muon'"),
    ],
)
def test_what_no_optimizer_has_is_refused(optimizer: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        specification(**optimizer)


def test_a_stack_refuses_it_by_name() -> None:
    with pytest.raises(UsageError, match="kind 'lion' by itself"):
        Stack(specification(kind="lion"), 2, torch.device("cpu"))


def test_a_pipeline_takes_it() -> None:
    Layout(pp=2, layers_per_stage=(0, 2)).check(specification(kind="lion", base_width=8))


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'lion' is already registered"):
        register("lion", lion.initial_state)(lion.build)
    with pytest.raises(ValueError, match="'adamw' are already registered"):
        register_options("adamw")(OptimizerOptions)


def test_options_without_steps_are_an_error_that_names_the_kind() -> None:
    register_options("only options")(type("OnlyOptions", (OptimizerOptions,), {}))
    with pytest.raises(UsageError, match="'only options', but no such optimizer is registered; registered: adamw"):
        build_optimizer(Transformer(SHAPE), specification(kind="only options"))
