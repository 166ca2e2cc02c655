"""Compares one accelerator with the CPU and measures its speed: a table and JSON in at most eight minutes.

Checks, in this order, each with its limit:

- losses and gradients of every kind of block against the CPU in fp32, and the loss in bf16; for plain text, for
  documents packed into a sequence with weighted predictions, as a supervised run has them, and for pairs of answers
  with their preference loss;
- five steps of fused AdamW and of Muon against the CPU;
- a run that is stopped and resumed ends with the weights of the run that was not, bit by bit;
- one rank under FSDP2 against the trainer without ranks, and how long its asynchronous checkpoints block training;
- the peak of the allocator against the dry run (devices that report a peak);
- stacks of models: tokens per second of all of them, and share of the fastest square matrix product;
- steps alone: tokens per second, eager and compiled, beside a bare PyTorch loop around a model in idiomatic PyTorch;
- tokens per second and model FLOPs utilisation (MFU) of the whole trainer with data and checkpoints, beside the same
  loop, and Hugging Face's Trainer where ``transformers`` and ``accelerate`` are installed.

A check that fails is reported with its error, and the others go on; the exit status is 1 then. What the time left does
not allow is skipped by name. On a CPU the same program runs on tiny sizes, which tries the program and not the device.

    python benchmarks/accelerator.py --json accelerator.json
    python benchmarks/accelerator.py --minutes 3 --only sizes --sizes 124M 350M
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import markdown, run_spec, write_json
from peers.loops import Plain
from stack import ceiling, seconds_of, specification, stepper
from torch import Tensor

import armillary
from armillary.corpus import Batch, Corpus, build_corpus
from armillary.goodput import read_events
from armillary.model import Transformer
from armillary.parallel import Program, dry_run
from armillary.recipe import (
    ArmillaryError,
    Checkpoints,
    CorpusSpec,
    DomainSpec,
    Experts,
    Latent,
    Layout,
    ModelShape,
    Preference,
    ReLU2,
    RunSpec,
    TokenizerSpec,
)
from armillary.train import (
    InterruptedRunError,
    LocalOptimizer,
    build_optimizer,
    default_device,
    stack_capacity,
    train_ranks,
    train_run,
    train_step,
)

DOMAIN = "words"
VOCABULARY = 512  # of the tokenizer; the models' is larger, as time and memory depend on it

# layers, width, heads, width of the feed-forward block, vocabulary, context length, sequences in a batch
SIZES = {
    "124M": (12, 768, 12, 2048, 50304, 1024, 32),
    "350M": (24, 1024, 16, 2736, 50304, 1024, 32),
    "1.3B": (24, 2048, 16, 5504, 50304, 2048, 8),
    "tiny": (2, 64, 2, 176, 1024, 64, 8),
}
# Steps between two checkpoints of a run of 60: of 1.3B one, whose 16 GB are being written until the run ends.
CHECKPOINT_EVERY = {"1.3B": 40}
GOAL_OF_BARE, GOAL_MFU = 0.97, 0.45  # the second at 1.3B in bf16 on an H100
MEMBERS = (1, 8, 64, 256)
CHECKS = ("blocks", "optimizers", "resume", "ranks", "memory", "stacks", "steps", "sizes")

# Relative to the norm of the CPU's: sums over another order of the same fp32 products, and products of bf16.
GRADIENT, LOSS, LOSS_BF16, STEPS = 1e-3, 1e-5, 5e-3, 1e-3


@dataclass
class Report:
    """The rows so far; prints each as it comes."""

    begun: float
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, check: str, value: str, *, good: bool | None = None, **measured: Any) -> None:
        """A row; ``good`` is None where there is no limit."""
        word = {None: "", True: "good", False: "OUTSIDE"}[good]
        self.rows.append({"check": check, "value": value, "good": good, **measured})
        print(f"[{time.monotonic() - self.begun:3.0f} s] {check}: {value} {word}".rstrip(), flush=True)

    def attempt(self, check: str, act: Callable[[], None], needs_s: float = 0.0) -> None:
        """Run a check; an error is a row, and so is too little time."""
        if time.monotonic() + needs_s > self.ends:
            self.add(check, "skipped: no time left; give more --minutes")
            return
        try:
            act()
        except (ArmillaryError, RuntimeError, AssertionError, ImportError, ValueError) as error:
            traceback.print_exc()
            self.add(check, f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}", good=False)


def shapes() -> dict[str, ModelShape]:
    """One small shape for every kind of block."""
    plain = {"n_layers": 2, "d_model": 128, "n_heads": 4, "n_kv_heads": 4, "head_dim": 32, "d_ff": 352}
    plain["vocab_size"] = 1024
    return {
        "attention of Llama": ModelShape(**plain),
        "grouped queries, QK-norm, tied": ModelShape(
            **{**plain, "n_kv_heads": 2, "qk_norm": True, "tied_embeddings": True}
        ),
        "experts": ModelShape(**plain, experts=Experts(count=8, active=2, d_ff=64, shared_d_ff=64)),
        "latent attention, ReLU²": ModelShape(
            **plain,
            attention=Latent(kv_rank=32, rope_head_dim=16),
            feed_forward=ReLU2(),
        ),
    }


def small_run(corpus: str, model: ModelShape, **fields: Any) -> RunSpec:
    """A run of some steps on short sequences."""
    given = {"context_length": 64, "batch_sequences": 8, "steps": 12, "seed": 3, "precision": "fp32", **fields}
    return run_spec(model, {DOMAIN: 1.0}, lr=1e-3, corpus=corpus, **given)


def batch_of(spec: RunSpec) -> Tensor:
    """Random tokens for one step."""
    size = (spec.batch_sequences, spec.context_length + 1)
    return torch.randint(spec.model.vocab_size, size, generator=torch.Generator().manual_seed(5))


def packed(spec: RunSpec) -> Batch[Tensor]:
    """The same tokens as three documents in each sequence, of which every third prediction has no weight."""
    tokens = batch_of(spec)
    place = torch.arange(spec.context_length).expand(len(tokens), -1)
    documents = (place > spec.context_length // 3).long() + (place > spec.context_length // 2).long()
    return Batch(tokens, (place % 3 > 0).float(), documents)


def pairs(spec: RunSpec) -> Batch[Tensor]:
    """The same tokens as two pairs of answers in each sequence; the reference finds all tokens equally likely."""
    tokens = batch_of(spec)
    length = spec.context_length // 4  # of an answer behind its prompt
    place = torch.arange(spec.context_length).expand(len(tokens), -1)
    # The last token of a document predicts the first one of the next.
    weights = ((place % length >= length // 3) & (place % length < length - 1)).float()
    documents = place // length
    answers = weights[documents % 2 == 0].sum().item(), weights[documents % 2 == 1].sum().item()
    reference = -math.log(spec.model.vocab_size) * weights
    return Batch(tokens, weights, documents, reference, weight=2.0 * len(tokens), answers=answers)


def loss_and_gradients(spec: RunSpec, batch: Batch[Tensor], device: torch.device) -> tuple[float, dict[str, Tensor]]:
    """Mean loss of a step without its update, and what clipping and the optimizer would get."""
    model = Transformer(spec.model)
    model.init_weights(spec.seed)
    model.to(device)
    kept: dict[str, Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for name, parameter in model.named_parameters():
                kept[name] = parameter.grad.cpu().clone()

    unclipped = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"grad_clip": 1e9})})
    there = batch.map(lambda values: values.to(device))
    loss, *_ = train_step(model, Keep(model.parameters(), lr=0.0), unclipped, 0, there)
    return loss.item(), kept


def off(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of what was expected."""
    return float((found.cpu() - expected.cpu()).norm() / expected.norm().clamp_min(1e-12))


def check_blocks(report: Report, device: torch.device) -> None:
    """Losses and gradients against the CPU."""
    for name, shape in shapes().items():
        plain = small_run("", shape)
        preference = plain.model_copy(update={"objective": Preference(examples="0" * 16)})
        for what, spec, batch in (
            (name, plain, Batch(batch_of(plain))),
            (f"{name}, documents and weights", plain, packed(plain)),
            (f"{name}, preference", preference, pairs(plain)),
        ):
            expected, wanted = loss_and_gradients(spec, batch, torch.device("cpu"))
            loss, gradients = loss_and_gradients(spec, batch, device)
            worst = max(off(gradients[key], wanted[key]) for key in wanted)
            difference = abs(loss - expected) / expected
            good = difference <= LOSS and worst <= GRADIENT
            said = f"loss {difference:.1e}, worst gradient {worst:.1e}"
            report.add(f"{what}, fp32", said, good=good, loss=difference, worst=worst)
            half, _ = loss_and_gradients(spec.model_copy(update={"precision": "bf16"}), batch, device)
            difference = abs(half - expected) / expected
            report.add(f"{what}, bf16", f"loss {difference:.1e}", good=difference <= LOSS_BF16, loss=difference)


def check_optimizers(report: Report, device: torch.device) -> None:
    """Weights after five steps against the CPU."""
    for kind in ("adamw", "muon"):
        spec = small_run("", shapes()["attention of Llama"])
        spec = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"kind": kind})})
        ended = []
        for where in (torch.device("cpu"), device):
            model = Transformer(spec.model)
            model.init_weights(spec.seed, spec.optimizer)
            start = {name: p.detach().clone() for name, p in model.named_parameters()}
            model.to(where)
            optimizer = build_optimizer(model, spec)
            for step in range(5):
                train_step(model, optimizer, spec, step, Batch(batch_of(spec).to(where)))
            ended.append({name: p.detach().cpu() - start[name] for name, p in model.named_parameters()})
        worst = max(off(ended[1][name], ended[0][name]) for name in ended[0])
        # Newton-Schulz iterates in bf16: a rounding that tips over moves a step by 2^-8 of itself.
        limit = STEPS if kind == "adamw" else 2e-2
        report.add(f"five steps of {kind}", f"worst movement {worst:.1e}", good=worst <= limit, worst=worst)


def check_resume(report: Report, device: torch.device, corpus: Corpus, scratch: Path) -> None:
    """Stopped in the middle and resumed, against not stopped."""
    spec = small_run(corpus.hash, shapes()["attention of Llama"], precision="bf16")
    train_run(spec, corpus, scratch / "whole", device=device)
    steps: list[int] = []
    try:
        train_run(spec, corpus, scratch / "parts", device=device, progress=steps.append, stop=lambda: steps[-1:] == [6])
    except InterruptedRunError:
        train_run(spec, corpus, scratch / "parts", device=device)
    same = (scratch / "whole/model.safetensors").read_bytes() == (scratch / "parts/model.safetensors").read_bytes()
    report.add("stopped after 6 of 12 steps, resumed", "bit by bit" if same else "other weights", good=same)


def by_ranks(
    spec: RunSpec, corpus: Corpus, folder: Path, device: torch.device, *, every: int = 20, **layout: Any
) -> float:
    """The loss of the run over one rank, with a checkpoint after ``every`` steps."""
    checkpoints = Checkpoints(every_steps=every)
    result = train_ranks(spec, corpus, folder, Layout(**layout), checkpoints=checkpoints, device=device)
    return statistics.mean(result.loss.values())


def check_ranks(report: Report, device: torch.device, corpus: Corpus, scratch: Path) -> None:
    """One rank against no ranks."""
    spec = small_run(corpus.hash, shapes()["attention of Llama"])
    alone = statistics.mean(train_run(spec, corpus, scratch / "alone", device=device).loss.values())
    difference = abs(by_ranks(spec, corpus, scratch / "rank", device) - alone)
    report.add("one rank, 12 steps", f"loss differs by {difference:.1e} nats", good=difference <= 1e-4, nats=difference)


def check_memory(report: Report, device: torch.device, spec: RunSpec, scratch: Path, corpus: Corpus) -> None:
    """Peak of the allocator against the dry run."""
    if device.type == "cpu":
        report.add("peak memory against the dry run", "skipped: a CPU reports no peak")
        return
    said = dry_run(spec, Layout(), LocalOptimizer).peak
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats(device)
    by_ranks(spec, corpus, scratch / "memory", device)
    peak = torch.accelerator.max_memory_allocated(device)
    report.add(
        "peak memory against the dry run",
        f"{peak / 2**30:.2f} GiB allocated, {said / 2**30:.2f} said ({said / peak - 1:+.1%})",
        good=abs(said / peak - 1) <= 0.05,
        peak=peak,
        said=said,
    )


def check_stacks(report: Report, device: torch.device, top: float) -> None:
    """Models in a stack times tokens per second, and the share of the matrix product."""
    spec = specification(2, 64, 512, 128, "fp32" if device.type == "cpu" else "bf16")
    for members in MEMBERS[:2] if device.type == "cpu" else MEMBERS:
        if stack_capacity(spec, members, device) < members:
            report.add(f"stack of {members}", "skipped: no memory")
            continue
        step = stepper(spec, members, device)
        step()
        rate = members * spec.batch_tokens / statistics.median(seconds_of(step, device, 0.5) for _ in range(3))
        share = rate * spec.model.train_flops_per_token(spec.context_length) / top
        report.add(f"stack of {members}", f"{rate:,.0f} tokens/s, {share:.1%} of the peak", rate=rate, share=share)


def sized(name: str, corpus: str, steps: int, precision: str) -> RunSpec:
    """A run of one of ``SIZES``."""
    layers, width, heads, hidden, vocabulary, context, sequences = SIZES[name]
    shape = ModelShape(
        n_layers=layers,
        d_model=width,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=width // heads,
        d_ff=hidden,
        vocab_size=vocabulary,
    )
    return small_run(corpus, shape, context_length=context, batch_sequences=sequences, steps=steps, precision=precision)


def bare(spec: RunSpec, device: torch.device, compiled: bool, seconds: float) -> float:
    """Tokens per second of the shortest loop, after two steps to warm up."""
    shape = spec.model.model_dump()
    raw = Plain(shape, spec.context_length).to(device)
    model = torch.compile(raw) if compiled else raw
    optimizer = torch.optim.AdamW(raw.parameters(), lr=1e-3, fused=True)
    batch = batch_of(spec).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = model(batch[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    step()
    return spec.batch_tokens / seconds_of(step, device, seconds)


def hugging_face(spec: RunSpec, device: torch.device, scratch: Path) -> float:
    """Tokens per second of Trainer with LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    shape = spec.model
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        max_position_embeddings=spec.context_length,
    )
    rows = [{"input_ids": row[:-1], "labels": row[:-1]} for row in batch_of(spec)] * spec.steps
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            times.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(scratch / "hugging-face"),
        per_device_train_batch_size=spec.batch_sequences,
        max_steps=spec.steps,
        bf16=spec.precision == "bf16",
        use_cpu=device.type == "cpu",
        report_to=[],
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
    )
    Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return (len(times) - 3) * spec.batch_tokens / (times[-1] - times[2])


def trained(events: Path, spec: RunSpec) -> float:
    """Tokens per second of a run of the trainer, without its first portion."""
    _, *portions = [event for event in read_events(events) if event.kind == "progress"]
    steps = portions[-1].step - portions[0].step
    if not steps:
        raise ArmillaryError("the run was too short to be timed")
    return steps * spec.batch_tokens / sum(event.duration_s or 0.0 for event in portions[1:])


def check_steps(report: Report, device: torch.device, name: str, top: float) -> None:
    """Steps of a program of one rank beside the bare loop, without a run around them."""
    spec = sized(name, "", 60, "fp32" if device.type == "cpu" else "bf16")
    flops = spec.model.train_flops_per_token(spec.context_length)
    for word, compiled in (("compiled", True), ("eager", False)):
        program = Program(spec, Layout(compile=compiled), device)
        for _, parameter in program.named_parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        optimizer, batch = LocalOptimizer(program.named_parameters(), spec), Batch(batch_of(spec))
        step = partial(one_step, program, optimizer, batch)
        for _ in range(2):
            step()
        rate = spec.batch_tokens / seconds_of(step, device, 3.0)
        del program, optimizer, step
        theirs = bare(spec, device, compiled, 3.0)
        good = None if device.type == "cpu" else rate >= GOAL_OF_BARE * theirs
        said = f"{rate:,.0f} tokens/s, MFU {rate * flops / top:.1%}, {rate / theirs:.1%} of the bare loop"
        report.add(f"{name}, {word} steps", said, good=good, rate=rate, bare=theirs, mfu=rate * flops / top)
        if device.type != "cpu":
            torch.accelerator.empty_cache()


def one_step(program: Program, optimizer: LocalOptimizer, batch: Batch[Tensor]) -> None:
    """What the engine does in a step."""
    program.gradients(batch)
    program.clip(1.0)
    optimizer.step(1e-4)
    program.balance()


def check_speed(report: Report, device: torch.device, corpus: Corpus, scratch: Path, name: str, top: float) -> None:
    """The trainer beside others at one size."""
    precision = "fp32" if device.type == "cpu" else "bf16"
    spec = sized(name, corpus.hash, 60, precision)
    flops = spec.model.train_flops_per_token(spec.context_length)
    rates: dict[str, float] = {}
    for word, compiled in (("eager", False), ("compiled", True)):
        rates[f"bare loop, {word}"] = bare(spec, device, compiled, 3.0 if device.type != "cpu" else 0.5)
        folder = scratch / f"{name}-{word}"
        by_ranks(spec, corpus, folder, device, every=CHECKPOINT_EVERY.get(name, 20), compile=compiled)
        rates[f"Armillary, {word}"] = trained(folder / "events.jsonl", spec)
        blocked = [e.duration_s or 0.0 for e in read_events(folder / "events.jsonl") if e.kind == "checkpoint"]
        # The first one also allocates the pinned memory on the host.
        said = ", ".join(f"{seconds * 1e3:.0f} ms" for seconds in blocked)
        report.add(f"{name}, {word}: asynchronous checkpoints", f"block training for {said}", blocked=blocked)
        if device.type != "cpu":
            torch.accelerator.empty_cache()
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate"):
        rates["Hugging Face Trainer"] = hugging_face(spec, device, scratch)
    for key, rate in rates.items():
        report.add(
            f"{name}, {key}", f"{rate:,.0f} tokens/s, MFU {rate * flops / top:.1%}", rate=rate, mfu=rate * flops / top
        )
    for word in ("eager", "compiled"):
        ratio = rates[f"Armillary, {word}"] / rates[f"bare loop, {word}"]
        # Sizes of a CPU try the program: a tiny model's step is shorter than what surrounds it.
        good = None if device.type == "cpu" else ratio >= GOAL_OF_BARE
        report.add(f"{name}, {word}: of the bare loop", f"{ratio:.1%}", good=good, ratio=ratio)
    best = max(rate for key, rate in rates.items() if key.startswith("Armillary")) * flops / top
    if name == "1.3B":
        report.add("1.3B: MFU against the measured product", f"{best:.1%}", good=best >= GOAL_MFU, mfu=best)


def group_of_one(scratch: Path, device: torch.device) -> None:
    """A process group of this process alone."""
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)
    store = dist.FileStore(str(scratch / "rendezvous"), 1)
    dist.init_process_group(dist.get_default_backend_for_device(device), store=store, rank=0, world_size=1)


def texts() -> Iterator[str]:
    """Documents of invented words."""
    random = torch.Generator().manual_seed(0)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    for _ in range(3000):
        yield " ".join(
            "".join(syllables[i] for i in torch.randint(len(syllables), (3,), generator=random).tolist())
            for _ in range(80)
        )


def small_corpus(scratch: Path) -> Corpus:
    """A corpus of invented words."""
    file = scratch / "words.txt"
    file.write_text("\n\n".join(texts()), encoding="utf-8")
    domains = {DOMAIN: DomainSpec(source=str(file))}
    tokenizer = TokenizerSpec(vocab_size=VOCABULARY)
    return build_corpus(CorpusSpec(domains=domains, tokenizer=tokenizer), scratch / "corpora")


def main() -> int:
    """Run all checks that the time allows; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: 124M 350M 1.3B, and tiny on a CPU")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS, help="these checks (default: all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no check begins that would end later (default 8)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    begun = time.monotonic()
    device = default_device()
    sizes = options.sizes or (["tiny"] if device.type == "cpu" else ["124M", "350M", "1.3B"])
    report = Report(begun, begun + 60 * options.minutes)
    about = f"{device.type}, {platform.processor() or platform.machine()}, torch {torch.__version__}"
    print(f"{about}, Python {platform.python_version()}, armillary {armillary.__version__}", flush=True)
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        corpus = small_corpus(scratch)
        peaks = {precision: ceiling(device, precision) for precision in ("fp32", "bf16")}
        report.add(
            "matrix product", ", ".join(f"{rate / 1e12:,.2f} TFLOP/s in {p}" for p, rate in peaks.items()), **peaks
        )
        top = max(peaks.values())
        group_of_one(scratch, device)
        precision = "fp32" if device.type == "cpu" else "bf16"
        of_memory = sized(sizes[0], corpus.hash, 3, precision)
        # what a check does, and how many seconds it needs
        checks: dict[str, tuple[Callable[[], None], float]] = {
            "blocks": (partial(check_blocks, report, device), 0.0),
            "optimizers": (partial(check_optimizers, report, device), 0.0),
            "resume": (partial(check_resume, report, device, corpus, scratch), 0.0),
            "ranks": (partial(check_ranks, report, device, corpus, scratch), 0.0),
            "memory": (partial(check_memory, report, device, of_memory, scratch, corpus), 30.0),
            "stacks": (partial(check_stacks, report, device, top), 20.0),
        }
        for name, (check, needs_s) in checks.items():
            if name in options.only:
                report.attempt(name, check, needs_s)
        for name in sizes if "steps" in options.only else ():
            report.attempt(f"{name}, steps", partial(check_steps, report, device, name, top), 40.0)
        for name in sizes if "sizes" in options.only else ():
            report.attempt(name, partial(check_speed, report, device, corpus, scratch, name, top), 60.0)
        dist.destroy_process_group()
    took = time.monotonic() - begun
    words = {None: "", True: "good", False: "**outside**"}
    print("\n" + markdown(["check", "measured", ""], [[r["check"], r["value"], words[r["good"]]] for r in report.rows]))
    print(f"\n{took:.0f} s")
    write_json(options.json, "accelerator", device=about, seconds=took, rows=report.rows)
    return int(any(row["good"] is False for row in report.rows))


if __name__ == "__main__":
    sys.exit(main())
