"""The same training run over several processes, as others would write it: one rank of it, started by torchrun.

- ``bare``: this project's model (with its CPU kernels) in the shortest FSDP2 loop: ``fully_shard`` on each layer and on
  the model, AdamW, clipping, nothing else. What a trainer adds to it is its overhead.
- ``plain``: the same loop around a model in idiomatic PyTorch.
- ``hugging-face``: ``Trainer`` with ``LlamaForCausalLM``, which accelerate spreads (DDP, what it does when nothing
  else is asked for).

With one process the first two are loops without FSDP2. Weights, batches, optimizer and learning rates are those of the
job, a JSON file (see loops.py); rank 0 writes the answer. Timed as there: without the first steps, evaluation and
checkpoints.

    torchrun --nproc-per-node 2 benchmarks/peers/ranks.py plain job.json answer.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import loops
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn


def sharded(model: nn.Module, layers: Any) -> None:
    """FSDP2 where there is more than one rank; gradients are summed and divided, since gloo has no average."""
    if not dist.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)


def train(job: dict[str, Any], batches: Any, model: nn.Module, loss_of: Any) -> loops.Answer:
    """AdamW and clipping around ``loss_of(batch)`` on this rank's sequences."""
    optimizer = loops.adamw(model, job)

    def step_of(step: int, batch: Tensor) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = job["lr"][step]
        with loops.precision(job):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job["optimizer"]["grad_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return loops.loop(job, batches, model, step_of)


def bare(job: dict[str, Any], batches: Any) -> loops.Answer:
    """This project's model in a bare loop."""
    from armillary.model import import_hf

    model = import_hf(Path(job["weights"]))
    sharded(model, model.layers.values())
    if dist.is_initialized():
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, "loss")
    return train(job, batches, model, lambda batch: model.loss(batch)[0] / batch[:, 1:].numel())


def plain(job: dict[str, Any], batches: Any) -> loops.Answer:
    """The plain model in a bare loop."""
    model = loops.plain_model(job)
    sharded(model, model.layers)
    return train(
        job, batches, model, lambda batch: F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    )


PEERS = {"bare": bare, "plain": plain, "hugging-face": loops.hugging_face}


def main() -> None:
    """Carry out the job as the peer of that name."""
    name, job_file, answer_file = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    batches = np.load(job["batches"], mmap_mode="r")
    rows = batches.shape[1] // ranks
    if name != "hugging-face":  # whose sampler deals the sequences out itself
        batches = batches[:, rank * rows : (rank + 1) * rows]
        if ranks > 1:
            dist.init_process_group("gloo")
    answer = PEERS[name](job | {"sequences": rows}, batches)
    answer["loss"] = loops.validation_loss(job, answer.pop("logits"))
    if rank == 0:
        Path(answer_file).write_text(json.dumps(answer))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
