"""The same training run as others would write it: one process that takes jobs from standard input.

Carries out a run with a plain PyTorch loop, with the same loop compiled, with Hugging Face ``Trainer``, or with
litgpt's model in the loop of its pretraining. All start from the same weights (a folder in Hugging Face's format),
read the same batches from a memory-mapped file, and use the same AdamW and learning rates. A job is a line of JSON,
and so is the answer. Needs torch, numpy, safetensors and the peer itself, and nothing of this project.

Trade-offs, all in favour of the peers: the first ``warmup`` steps (compilation, allocations) are not timed, nor is
evaluation, and no checkpoints are written. litgpt gets the fused AdamW, which its pretraining asks for on GPUs only,
and is measured compiled, as its pretraining does it, and not compiled.

    python benchmarks/peers/loops.py plain < jobs.jsonl
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from safetensors.torch import load_file
from torch import Tensor, nn

Answer = dict[str, Any]
linear = partial(nn.Linear, bias=False)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = linear(width, width)
        self.k_proj = linear(width, width)
        self.v_proj = linear(width, width)
        self.o_proj = linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = linear(width, hidden)
        self.up_proj = linear(width, hidden)
        self.down_proj = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.self_attn = Attention(width, heads)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Plain(nn.Module):
    """A decoder-only transformer in idiomatic PyTorch; modules bear Hugging Face's names, so that its files load."""

    def __init__(self, shape: dict[str, Any], context_length: int) -> None:
        super().__init__()
        width = shape["d_model"]
        self.embed_tokens = nn.Embedding(shape["vocab_size"], width)
        self.layers = nn.ModuleList(
            Layer(width, shape["n_heads"], shape["d_ff"], shape["norm_eps"]) for _ in range(shape["n_layers"])
        )
        self.norm = nn.RMSNorm(width, shape["norm_eps"])
        self.lm_head = linear(width, shape["vocab_size"])
        size = width // shape["n_heads"]
        rates = shape["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(context_length), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.lm_head(self.norm(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves paired."""
    one, other = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-other, one), dim=-1) * sin


def adamw(model: nn.Module, job: dict[str, Any]) -> torch.optim.AdamW:
    """The job's optimizer, with decay on matrices only."""
    o, parameters = job["optimizer"], list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": o["weight_decay"]},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], fused=True)


def plain_model(job: dict[str, Any]) -> Plain:
    """The plain model with the job's weights."""
    model = Plain(job["shape"], job["context_length"])
    weights = load_file(Path(job["weights"]) / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    return model


def precision(job: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if job["precision"] == "bf16" else contextlib.nullcontext()


def set_lr(optimizer: Any, job: dict[str, Any], step: int) -> None:
    """Give the optimizer the rate that the job has for this step."""
    for group in optimizer.param_groups:
        group["lr"] = job["lr"][step]


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, job: dict[str, Any], step: int, batch: Tensor
) -> Tensor:
    """One training step as a user writes it; returns the loss."""
    set_lr(optimizer, job, step)
    with precision(job):
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), job["optimizer"]["grad_clip"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def loop(job: dict[str, Any], batches: Any, model: nn.Module, step_of: Callable[[int, Tensor], Tensor]) -> Answer:
    """Take all steps with ``step_of(step, batch)``; the clock starts after the first ``warmup`` ones."""
    losses = []
    begin = timed = time.perf_counter()
    for step in range(job["steps"]):
        if step == job["warmup"]:
            timed = time.perf_counter()
        loss = step_of(step, torch.from_numpy(batches[step].astype(np.int64)))
        losses.append(loss)
        if step % 10 == 0:
            print(f"step {step} loss {loss.item():.3f}", file=sys.stderr)
    last = losses[-1].item()
    end = time.perf_counter()
    return {"seconds": end - timed, "warmup_seconds": timed - begin, "train_loss": last, "logits": model}


def plain(job: dict[str, Any], batches: Any) -> Answer:
    """The loop of a tutorial."""
    return _plain(job, batches, lambda model: model)


def compiled(job: dict[str, Any], batches: Any) -> Answer:
    """The same under ``torch.compile``."""
    return _plain(job, batches, torch.compile)


def _plain(job: dict[str, Any], batches: Any, wrap: Callable[[Any], Any]) -> Answer:
    raw = plain_model(job)
    model, optimizer = wrap(raw), adamw(raw, job)
    return loop(job, batches, raw, lambda step, batch: plain_step(model, optimizer, job, step, batch))


def hugging_face(job: dict[str, Any], batches: Any) -> Answer:
    """``Trainer`` with ``LlamaForCausalLM``, metrics logged every ten steps."""
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = LlamaForCausalLM.from_pretrained(job["weights"], dtype=torch.float32)
    rows = batches.reshape(-1, batches.shape[-1])

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            tokens = torch.from_numpy(rows[index].astype(np.int64))
            # The last token is predicted too, so the labels are given shifted.
            return {"input_ids": tokens[:-1], "labels": tokens[1:], "shift_labels": tokens[1:]}

    class Ordered(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        begin = timed = end = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == job["warmup"]:
                self.timed = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.end = time.perf_counter()

    o, clock = job["optimizer"], Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=job["steps"],
            per_device_train_batch_size=job["sequences"],
            learning_rate=o["lr"],
            weight_decay=o["weight_decay"],
            adam_beta1=o["beta1"],
            adam_beta2=o["beta2"],
            adam_epsilon=o["eps"],
            max_grad_norm=o["grad_clip"],
            optim="adamw_torch_fused",
            bf16=job["precision"] == "bf16",
            use_cpu=True,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        optimizer = adamw(model, job)
        # The scheduler is asked once more than there are steps.
        rates = [rate / o["lr"] for rate in job["lr"]] + [0.0]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates.__getitem__)
        trainer = Ordered(
            model=model,
            args=arguments,
            train_dataset=Rows(),
            callbacks=[clock],
            optimizers=(optimizer, schedule),
        )
        trainer.train()
    history = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "seconds": clock.end - clock.timed,
        "warmup_seconds": clock.timed - clock.begin,
        "train_loss": history[-1] if history else None,
        "logits": lambda tokens: model(tokens).logits,
    }


def litgpt(job: dict[str, Any], batches: Any) -> Answer:
    """litgpt's model without compilation."""
    return _litgpt(job, batches, lambda model: model)


def litgpt_compiled(job: dict[str, Any], batches: Any) -> Answer:
    """litgpt's model compiled, as its pretraining does."""
    # Looked up when it is called: importing lightning replaces torch.compile.
    return _litgpt(job, batches, lambda model: torch.compile(model))  # noqa: PLW0108


def _litgpt(job: dict[str, Any], batches: Any, wrap: Callable[[Any], Any]) -> Answer:
    import lightning
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = job["shape"]
    config = Config(
        block_size=job["context_length"],
        n_layer=shape["n_layers"],
        n_embd=shape["d_model"],
        n_head=shape["n_heads"],
        n_query_groups=shape["n_heads"],
        intermediate_size=shape["d_ff"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        rotary_percentage=1.0,
        rope_base=round(shape["rope_theta"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape["norm_eps"],
        mlp_class_name="LLaMAMLP",
    )
    fabric = lightning.Fabric(
        accelerator="cpu", devices=1, precision="bf16-mixed" if job["precision"] == "bf16" else "32-true"
    )
    raw = GPT(config)
    raw.load_state_dict(litgpt_weights(job), strict=True)
    model = fabric.setup(wrap(raw))
    optimizer = fabric.setup_optimizers(adamw(model, job))

    def step_of(step: int, tokens: Tensor) -> Tensor:
        set_lr(optimizer, job, step)
        logits = model(tokens[:, :-1].contiguous())
        loss = chunked_cross_entropy(logits, tokens[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=job["optimizer"]["grad_clip"])
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return loop(job, batches, raw, step_of)


def litgpt_weights(job: dict[str, Any]) -> dict[str, Tensor]:
    """The job's weights under litgpt's names."""
    w = load_file(Path(job["weights"]) / "model.safetensors")
    names = {
        "transformer.wte.weight": w["model.embed_tokens.weight"],
        "transformer.ln_f.weight": w["model.norm.weight"],
        "lm_head.weight": w["lm_head.weight"],
    }
    for i in range(job["shape"]["n_layers"]):
        ours, theirs = f"transformer.h.{i}", f"model.layers.{i}"
        names |= {
            f"{ours}.norm_1.weight": w[f"{theirs}.input_layernorm.weight"],
            f"{ours}.attn.qkv.weight": torch.cat([w[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv"]),
            f"{ours}.attn.proj.weight": w[f"{theirs}.self_attn.o_proj.weight"],
            f"{ours}.norm_2.weight": w[f"{theirs}.post_attention_layernorm.weight"],
            f"{ours}.mlp.fc_1.weight": w[f"{theirs}.mlp.gate_proj.weight"],
            f"{ours}.mlp.fc_2.weight": w[f"{theirs}.mlp.up_proj.weight"],
            f"{ours}.mlp.proj.weight": w[f"{theirs}.mlp.down_proj.weight"],
        }
    return names


PEERS: dict[str, Callable[[dict[str, Any], Any], Answer]] = {
    "plain": plain,
    "compiled": compiled,
    "hugging-face": hugging_face,
    "litgpt": litgpt,
    "litgpt-compiled": litgpt_compiled,
}


@torch.no_grad()
def validation_loss(job: dict[str, Any], logits: Callable[[Tensor], Tensor]) -> float:
    """Mean cross entropy on the validation windows."""
    tokens = torch.from_numpy(np.load(job["validation"]).astype(np.int64))
    with precision(job):
        return F.cross_entropy(logits(tokens[:, :-1]).float().flatten(0, 1), tokens[:, 1:].flatten()).item()


def main() -> None:
    """Answer jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    run = PEERS[sys.argv[1]]
    for line in sys.stdin:
        job = json.loads(line)
        answer = run(job, np.load(job["batches"], mmap_mode="r")[:, : job["sequences"]])
        answer["precision"] = job["precision"]
        answer["loss"] = validation_loss(job, answer.pop("logits"))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
