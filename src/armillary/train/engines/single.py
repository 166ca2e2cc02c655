"""The engine of one model on one device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary.corpus import Batch
from armillary.model import (
    PairTargets,
    Transformer,
    adapter_state,
    balance_experts,
    check_tokens,
    document_starts,
    draw_adapters,
    mean_share,
    merged_state,
    preference_sums,
    save_tensors,
    set_batch_weight,
    slots_for,
    without_ignored,
)
from armillary.optim import build_optimizer, set_lr
from armillary.recipe import Preference, RunSpec, measures
from armillary.train.checkpoint import CheckpointReader, Piece, PieceReader, whole
from armillary.train.engines.engine import ADAPTER, autocast, outline, parts
from armillary.train.writing import writing


class SingleDeviceEngine:
    """One model on one device."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.described: dict[str, Any] = {}
        self.compiles = False
        self.model = outline(spec)
        self.model.to_empty(device=device)
        self.optimizer = build_optimizer(self.model, spec)

    def step(self, step: int, batch: Batch[Tensor]) -> tuple[Tensor, ...]:
        """As ``train_step``, with the positions used at this step; TokenError for a token outside the vocabulary."""
        check_tokens(without_ignored(batch.tokens, batch.weights), self.spec.model.vocab_size)
        self.model.turn_as(self.spec.during(step).model)
        here = batch.map(lambda part: part.to(self.device, non_blocking=True))
        return train_step(self.model, self.optimizer, self.spec, step, here)

    @torch.no_grad()
    def entropy(self, step: int, windows: Tensor) -> float:
        """Mean cross entropy in nats over ``windows`` [n, T + 1], with the positions used at ``step``."""
        check_tokens(windows, self.spec.model.vocab_size)
        self.model.turn_as(self.spec.during(step).model)
        with autocast(self.spec, self.device):
            _, entropy = self.model.loss(windows.to(self.device))
        return mean_share(entropy, windows[:, 1:].numel(), 1).item()

    def pieces(self) -> dict[str, Piece]:
        """All weights and the optimizer state."""
        tensors = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{name}/{key}"] = torch.as_tensor(value)
        return whole(tensors)

    def draw_weights(self) -> None:
        """Draw initial weights from the seed of the run."""
        self.model.init_weights(self.spec.seed, self.spec.optimizer)

    def load_weights(self, reader: PieceReader) -> None:
        """Read all weights, and draw adapters; the optimizer keeps its initial state."""
        draw_adapters(self.model, self.spec.seed)
        self._read(reader, self.model.state_dict().keys() - adapter_state(self.model).keys())

    def _read(self, reader: PieceReader, names: Iterable[str]) -> None:
        state = self.model.state_dict()
        for name in names:
            state[name].copy_(reader.read(name, tuple(state[name].shape), (0,) * state[name].ndim))

    def load(self, reader: CheckpointReader) -> None:
        """Read weights and optimizer state from a checkpoint."""
        self._read(reader, self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            # The fused optimizer keeps its step count on the parameter's device.
            self.optimizer.state[parameter] = {
                key: reader.read(f"{name}/{key}", size, (0,) * len(size)).to(self.device)
                for key, size in reader.states(name).items()
            }

    def check_copies(self) -> None:
        """None, since there is only one copy."""

    def save_weights(self, path: Path) -> None:
        """Write the weights with merged adapters as one safetensors file, and the adapters beside it as ``ADAPTER``.

        Raises:
            ArmillaryError: a file cannot be written.
        """
        with writing(path):
            if self.spec.adapter is not None:
                save_tensors(adapter_state(self.model), path.with_name(ADAPTER))
            save_tensors(merged_state(self.model), path)


def train_step(
    model: Transformer, optimizer: torch.optim.Optimizer, spec: RunSpec, step: int, batch: Batch[Tensor]
) -> tuple[Tensor, ...]:
    """One optimizer step on ``batch``, which is on the model's device.

    Returns scalars on the device: the mean loss in nats, the gradient norm before clipping, and the further
    measurements of the objective (``recipe.measures``).
    """
    set_lr(optimizer, spec.lr(step))
    set_batch_weight(model, batch.predictions)
    device = batch.tokens.device
    means = torch.zeros(1 + len(measures(spec.objective)), device=device)
    for part in parts(batch, spec.accumulation):
        with autocast(spec, device):
            objective, sums = loss_sums(model, part, spec)
        mean_share(objective, batch.weight, spec.accumulation).backward()  # type: ignore[no-untyped-call]
        means += mean_share(sums, batch.weight, spec.accumulation)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.optimizer.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    balance_experts(model)
    loss, *measured = means
    return loss, norm, *measured


def loss_sums(model: Transformer, batch: Batch[Tensor], spec: RunSpec) -> tuple[Tensor, Tensor]:
    """The objective to call ``backward`` on, and sums [1 + measures] of the loss and of the further measurements.

    Divide both by ``batch.weight``; only the first carries a gradient.
    """
    if not isinstance(spec.objective, Preference):
        z_loss = spec.optimizer.z_loss
        objective, entropy = model.loss(batch.tokens, z_loss, batch.weights, batch.documents)
        return objective, entropy.detach()[None]
    assert batch.weights is not None and batch.documents is not None
    assert batch.reference is not None and batch.answers is not None
    tokens = without_ignored(batch.tokens, batch.weights)
    features = model.features(tokens[:, :-1], None, document_starts(batch.documents), batch.weights)
    about = batch.weights, batch.documents, batch.reference
    wanted = PairTargets(tokens[:, 1:], *about, slots_for(tokens.shape[1] - 1), batch.weight, batch.answers[0])
    return preference_sums(model, features, wanted, spec.objective)
