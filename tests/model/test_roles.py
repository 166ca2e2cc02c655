"""Roles give what the rules by name gave before them, and a block cannot forget one."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import nn

from armillary.model import Role, Transformer, gain, model_roles, width_factors
from armillary.model.roles import declared_roles
from armillary.optim import build_optimizer
from armillary.recipe import Experts, MixturePhase, ModelShape, OptimizerSpec, RunSpec

SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 24, "vocab_size": 40}
EXPERTS = Experts(count=4, active=2, d_ff=8, shared_d_ff=8, dense_layers=1)
SHAPES = {
    "llama": ModelShape(**SIZES),
    "qwen3": ModelShape(**SIZES, qk_norm=True),
    "tied": ModelShape(**SIZES, tied_embeddings=True),
    "experts": ModelShape(**SIZES, qk_norm=True, experts=EXPERTS),
}
OPTIMIZERS = {
    "adamw": OptimizerSpec(lr=1e-3),
    "adamw by width": OptimizerSpec(lr=1e-3, base_width=8, base_head_dim=4),
    "muon by width": OptimizerSpec(lr=1e-3, kind="muon", base_width=8, base_head_dim=4),
}
# SHA-256 of names and initial values with seed 7, as the rules by name drew them.
INITIAL = {
    ("llama", "adamw"): "4773a8851a4eb831",
    ("llama", "adamw by width"): "3bb673f69b33acdf",
    ("llama", "muon by width"): "3bb673f69b33acdf",
    ("qwen3", "adamw"): "4e0481b13b5b66eb",
    ("qwen3", "adamw by width"): "534de0d07914f506",
    ("qwen3", "muon by width"): "534de0d07914f506",
    ("tied", "adamw"): "2d5f339bf00c8ebf",
    ("tied", "adamw by width"): "7e8b6e8f13f927d0",
    ("tied", "muon by width"): "7e8b6e8f13f927d0",
    ("experts", "adamw"): "ecd5d354f7394c7a",
    ("experts", "adamw by width"): "926bfcf6896d0d6d",
    ("experts", "muon by width"): "926bfcf6896d0d6d",
}


def factors_by_name(name: str, ndim: int, shape: ModelShape, optimizer: OptimizerSpec) -> tuple[float, float]:
    """The rule of the width transfer by names, as it was."""
    if optimizer.base_width is None:
        return 1.0, 1.0
    wider = shape.d_model / optimizer.base_width
    taller = shape.head_dim / (optimizer.base_head_dim or shape.head_dim)
    last = "norm.weight" if shape.tied_embeddings else "output.weight"
    if name == last or name.endswith("router.weight"):
        return 1 / wider, 1 / wider
    if name.endswith("attention.q_norm.weight"):
        return 1 / math.sqrt(taller), 1 / math.sqrt(taller)
    if ndim == 1 or name == "embedding.weight":
        return 1.0, 1.0
    muon = optimizer.kind == "muon" and name.startswith("layers.")
    initial, rate = 1 / math.sqrt(wider), 1 / math.sqrt(wider) if muon else 1 / wider
    if name.endswith("attention.q.weight") and not shape.qk_norm:
        return initial / math.sqrt(taller), rate / math.sqrt(taller)
    return initial, rate


def cut_by_name(name: str) -> str:
    """The plan of tensor parallel by names, as it was."""
    if name in ("embedding.weight", "output.weight"):
        return "vocabulary"
    if ".experts." in name:
        return "experts"
    if name.endswith((".q.weight", ".k.weight", ".v.weight", ".gate.weight", ".up.weight")):
        return "rows"
    if name.endswith((".out.weight", ".down.weight")):
        return "columns"
    return "whole" if name.endswith(("q_norm.weight", "k_norm.weight", "router.weight")) else "stream"


@pytest.mark.parametrize(("shape", "optimizer"), INITIAL)
def test_roles_give_what_names_gave(shape: str, optimizer: str) -> None:
    model, spec = Transformer(SHAPES[shape]), OPTIMIZERS[optimizer]
    assert list(model.roles) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        role = model.roles[name]
        assert width_factors(role, model.shape, spec) == factors_by_name(name, parameter.ndim, model.shape, spec), name
        assert role.cut == cut_by_name(name)
        assert role.decay == (parameter.ndim > 1)
        assert role.matrix == (parameter.ndim > 1 and name.startswith("layers."))


@pytest.mark.parametrize(("shape", "optimizer"), INITIAL)
def test_initial_values_are_those_of_the_rules_by_name(shape: str, optimizer: str) -> None:
    model = Transformer(SHAPES[shape])
    model.init_weights(7, OPTIMIZERS[optimizer])
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    assert digest.hexdigest()[:16] == INITIAL[shape, optimizer]


@pytest.mark.parametrize(("shape", "optimizer"), INITIAL)
def test_optimizer_groups_are_those_of_the_rules_by_name(shape: str, optimizer: str) -> None:
    model, o = Transformer(SHAPES[shape]), OPTIMIZERS[optimizer]
    mixture = (MixturePhase(start_step=0, weights={"text": 1.0}),)
    sizes = {"context_length": 8, "batch_sequences": 1, "steps": 1, "seed": 1}
    spec = RunSpec(corpus="none", model=model.shape, mixture=mixture, optimizer=o, **sizes)
    expected: dict[tuple[bool, float, float], list[str]] = {}
    for name, parameter in model.named_parameters():
        _, factor = factors_by_name(name, parameter.ndim, model.shape, o)
        own = o.kind == "adamw" or (parameter.ndim > 1 and name.startswith("layers."))
        decay = o.weight_decay / factor if parameter.ndim > 1 else 0.0
        expected.setdefault((own, decay, factor), []).append(name)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        ((group["own"], group["weight_decay"], group["lr_factor"]), [names[p] for p in group["params"]])
        for group in build_optimizer(model, spec).param_groups
    ]
    assert found == list(expected.items())


def test_the_roles_of_a_shape_are_those_of_its_model() -> None:
    for shape in SHAPES.values():
        assert dict(model_roles(shape)) == Transformer(shape).roles


class Block(nn.Module):
    def __init__(self, roles: dict[str, Role]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(3))
        self.roles = roles


@pytest.mark.parametrize(
    ("roles", "problem"),
    [({}, "parameter 0.gain has no role"), ({"gain": gain("whole"), "gian": gain("whole")}, "a role for 0.gian")],
)
def test_a_block_declares_each_parameter_and_nothing_else(roles: dict[str, Role], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        declared_roles(nn.Sequential(Block(roles)))
