"""The loss on held-out conversations: nats per token of the assistant, before, during and after a fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from armillary.corpus import SupervisedOrder
from armillary.model import Transformer

LOSS = "held_out/loss"  # the column of a run's metrics


def held_out_loss(
    model: Transformer, order: SupervisedOrder, progress: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Mean cross entropy of ``model`` in nats per trained token over all sequences of ``order``, each once, in fp32.

    ``order`` has one sequence per step.
    """
    device = next(model.parameters()).device
    total = weight = 0.0
    with torch.no_grad():
        for step in range(order.sequences):
            batch = order.batch(step).map(lambda part: torch.from_numpy(part).to(device))
            total += model.loss(batch.tokens, 0.0, batch.weights, batch.documents)[1].item()
            weight += batch.weight
            progress(step + 1, order.sequences)
    return total / weight


class HeldOut:
    """A hook that measures the loss after each pass over the data except the last, and adds it to the row of its step.

    ``order`` is as for ``held_out_loss``, ``every`` is the number of steps of a pass and ``steps`` that of the run;
    ``note`` gets the number of the pass and the loss. Only for runs of one process.
    """

    def __init__(self, order: SupervisedOrder, every: int, steps: int, note: Callable[[int, float], None]) -> None:
        self.order, self.every, self.steps, self.note = order, every, steps, note

    def due(self, step: int) -> bool:
        """After each pass except the last."""
        return step % self.every == 0 and 0 < step < self.steps

    def act(self, run: Any) -> None:
        """Measure the loss, unless the row already has it.

        Raises:
            DivergedError: the loss is not finite.
        """
        if LOSS in run.metrics.last:
            return
        loss = held_out_loss(run.engine.model, self.order)
        if not math.isfinite(loss):
            run.diverged(run.step, f"the loss on held-out conversations is {loss}")
        run.metrics.annotate({LOSS: loss})
        self.note(run.step // self.every, loss)
