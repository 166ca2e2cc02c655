"""Low-rank adapters (LoRA): added to a model's matrices, initialised, merged into the weights, read and written.

Hu et al. 2021, arXiv 2106.09685. The model's parameters keep their names and are frozen. An adapted matrix has
``lora_a`` [rank, in] and ``lora_b`` [out, rank] beside its ``weight``. Adapters are saved in peft's format;
``PeftModel`` loads them onto the model that they were trained from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn

from armillary.model.roles import Role
from armillary.model.transformer import Transformer, model_roles
from armillary.model.weights.files import replace_folder, save_tensors
from armillary.model.weights.huggingface import names_there
from armillary.recipe import Lora, ModelShape, UsageError

ADAPTER = "adapter_model.safetensors"


class LoraLinear(nn.Linear):
    """A matrix with an adapter; it takes the weight of the ``plain`` matrix."""

    def __init__(self, plain: nn.Linear, lora: Lora) -> None:
        with torch.device("meta"):
            super().__init__(plain.in_features, plain.out_features, bias=False)
        self.weight = plain.weight
        self.weight.requires_grad_(False)
        self.bias = plain.bias  # frozen with the other parameters of the model
        at = plain.weight.device
        self.lora_a = nn.Parameter(torch.empty(lora.rank, plain.in_features, device=at))
        self.lora_b = nn.Parameter(torch.zeros(plain.out_features, lora.rank, device=at))
        self.factor = lora.alpha / lora.rank

    def forward(self, x: Tensor) -> Tensor:
        """Apply the matrix and its adapter to ``x``."""
        return F.linear(x, self.weight, self.bias) + self.factor * F.linear(F.linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The single matrix that is equal to this matrix with its adapter."""
        return self.weight + self.factor * (self.lora_b @ self.lora_a)


def add_adapters(model: Transformer, lora: Lora) -> None:
    """Freeze ``model`` and add an uninitialised adapter to each of its matrices that ``lora`` targets.

    Raises:
        UsageError: no matrix of the model has one of these names, as in a mixture of experts.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = [
        (parent, name, child)
        for parent in model.layers.modules()
        for name, child in parent.named_children()
        if name in lora.targets and isinstance(child, nn.Linear)
    ]
    missing = set(lora.targets) - {name for _, name, _ in found}
    if missing and model.part.begins and model.part.ends:  # a stage of a pipeline may lack some
        raise UsageError(
            f"adapter.targets: no matrix of this model's layers is named {', '.join(sorted(missing))}; leave it out"
        )
    for parent, name, child in found:
        setattr(parent, name, LoraLinear(child, lora))
    for matrix, _ in adapters(model):
        # B is split by rows like its matrix, or A by columns. The other one is whole: each rank uses it for its own
        # rows or columns, so its gradient is summed over the ranks.
        cut = model.roles[f"{matrix}.weight"].cut
        model.roles[f"{matrix}.lora_a"] = Role("columns" if cut == "columns" else "whole")
        model.roles[f"{matrix}.lora_b"] = Role("rows" if cut == "rows" else "whole")


def adapters(model: Transformer) -> list[tuple[str, LoraLinear]]:
    """The adapted matrices of ``model`` by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]


@torch.no_grad()
def draw_adapters(model: Transformer, seed: int) -> None:
    """Draw the values of all adapters of ``model`` (``adapter_values``)."""
    for name, value in adapter_state(model).items():
        value.copy_(adapter_values(name, tuple(value.shape), seed))


def adapter_values(name: str, size: tuple[int, ...], seed: int) -> Tensor:
    """The initial values of the whole tensor ``name`` of an adapter, fp32 on the CPU.

    A [rank, in] is drawn from ``seed`` and its name, uniformly as peft does (Kaiming, a = sqrt(5)); B is 0.
    """
    values = torch.zeros(size, device="cpu")
    if name.endswith(".lora_a"):
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        source = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        bound = 1 / math.sqrt(size[1])
        values.uniform_(-bound, bound, generator=source)
    return values


@functools.lru_cache(maxsize=64)
def run_roles(shape: ModelShape, lora: Lora | None) -> Mapping[str, Role]:
    """The role of each parameter of a whole model of ``shape`` with its adapters, by name in the order of the model."""
    if lora is None:
        return model_roles(shape)
    with torch.device("meta"):
        model = Transformer(shape)
        add_adapters(model, lora)
    return MappingProxyType(model.roles)


def merged_state(model: Transformer) -> dict[str, Tensor]:
    """The weights of the equivalent model without adapters, under the names of a plain model."""
    state = dict(model.state_dict())
    for name, module in adapters(model):
        state[f"{name}.weight"] = module.merged()
        del state[f"{name}.lora_a"], state[f"{name}.lora_b"]
    return state


def adapter_state(model: Transformer) -> dict[str, Tensor]:
    """The trained part of the model: the adapters, under our names."""
    return {name: value for name, value in model.state_dict().items() if is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Whether a tensor of a model belongs to an adapter."""
    return name.endswith((".lora_a", ".lora_b"))


def export_adapter(shape: ModelShape, lora: Lora, state: Mapping[str, Tensor], folder: Path, base: str) -> None:
    """Write the adapters of a model of ``shape`` as a folder that ``peft.PeftModel.from_pretrained`` loads.

    The folder appears atomically. ``state`` is as ``adapter_state``; ``base`` is the folder of the model that the
    adapters were trained from.

    Raises:
        UsageError: ``folder`` holds files that are not an export.
    """
    parts, there = {"lora_a": "lora_A", "lora_b": "lora_B"}, names_there(shape)
    tensors = {}
    for name, value in state.items():
        matrix, _, part = name.rpartition(".")
        theirs = there[f"{matrix}.weight"].removesuffix(".weight")
        tensors[f"base_model.model.{theirs}.{parts[part]}.weight"] = value
    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [projections.get(name, f"{name}_proj") for name in lora.targets],
        "inference_mode": True,
    }
    with replace_folder(folder) as aside:
        (aside / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, aside / ADAPTER)
