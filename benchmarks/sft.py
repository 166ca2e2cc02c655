"""Trained tokens per second of supervised fine-tuning: this trainer against TRL's ``SFTTrainer`` with packing.

SmolLM2-135M-Instruct (a Hugging Face folder), the same packed sequences in the same order, full fine-tuning with AdamW,
CPU, the same number of threads (``OMP_NUM_THREADS``) and the same precision, in one process. The two take turns within
each round; ratios are medians over the rounds. A trained token is one in the loss.

TRL gets the packed rows as its own packing makes them (``seq_lengths``), one row at a time with gradient accumulation:
with several at a time it joins them into one row, and its attention mask grows quadratically. Its loss of the first
batch is compared with ours before anything is timed.

On a machine that others use too, ``--clock processor`` with one thread counts the seconds of this process instead of
those of the wall.

Needs the extras ``export`` and ``dev``.

    OMP_NUM_THREADS=1 python benchmarks/sft.py --model smollm2 --clock processor --json sft.json
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import markdown, write_json

from armillary.corpus import Example, SupervisedOrder, write_examples, write_vocabulary
from armillary.model import import_hf, read_shape
from armillary.post.check import Checked
from armillary.post.formats import Conversation
from armillary.post.plan import SftOptions, plan_for
from armillary.post.template import open_renderer
from armillary.train import build_optimizer, train_step

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
NAMES = ("Mina", "Otto", "Li", "Sara", "Wei", "Ivo")
THINGS = ("apples", "stamps", "books", "shells", "pencils")


def conversations(count: int, turns: int) -> list[Conversation]:
    """Word problems with worked answers, ``turns`` questions in each."""
    chance = random.Random(0)
    made = []
    for _ in range(count):
        said: list[dict[str, Any]] = []
        for _ in range(chance.randint(1, turns)):
            name, thing = chance.choice(NAMES), chance.choice(THINGS)
            a, b, c = (chance.randint(2, 90) for _ in range(3))
            question = (
                f"{name} has {a} {thing} and buys {b} boxes with {c} {thing} in each. A friend gives {name} as many "
                f"{thing} as there are boxes. How many {thing} does {name} have in the end?"
            )
            answer = (
                f"The boxes hold {b} * {c} = {b * c} {thing}. With the first {a} that is {a + b * c}. The friend adds "
                f"{b}, so {name} has {a + b * c + b} {thing}."
            )
            said += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made.append(Conversation(tuple(said)))
    return made


def prepared(given: argparse.Namespace, folder: Path, options: SftOptions) -> tuple[Any, SupervisedOrder, Any]:
    """The run that ``post sft`` would make of conversations, its batches, and counts of the data."""
    model = given.model
    renderer = open_renderer(model)
    checked = Checked(renderer, given.context_length + 1, read_shape(model).vocab_size)
    rendered = list(checked.of(conversations(80 * given.sequences, given.turns)))
    end = str(renderer.text.tokenizer.id_to_token(renderer.end))
    corpus = write_vocabulary(folder / "corpus", (model / "tokenizer.json").read_text(encoding="utf-8"), end)
    examples = write_examples(corpus, "data", [Example(r.tokens, [float(t) for t in r.trained]) for r in rendered])
    spec, _ = plan_for(read_shape(model), corpus, examples.hash, options, checked.counts.longest)
    return spec, SupervisedOrder.of(spec, corpus), checked.counts


def ours(given: argparse.Namespace, order: SupervisedOrder, spec: Any) -> Callable[[int], float]:
    """A function that takes step ``n`` with this trainer and returns its loss."""
    model = import_hf(given.model)
    optimizer = build_optimizer(model, spec)

    def step(number: int) -> float:
        batch = order.batch(number).map(torch.from_numpy)
        return train_step(model, optimizer, spec, number, batch)[0].item()

    return step


def trl_steps(given: argparse.Namespace, order: SupervisedOrder, spec: Any, folder: Path) -> Callable[[int], float]:
    """The same with TRL's trainer over the same packed rows."""
    import transformers
    import trl
    from datasets import Dataset

    rows = []
    for number in range(1 + given.rounds):
        batch = order.batch(number)
        for tokens, weights, documents in zip(batch.tokens, batch.weights, batch.documents, strict=True):
            kept = int(weights.nonzero()[0][-1]) + 2  # the padding behind the last trained token is ours
            labels = [-100, *(int(t) if w else -100 for t, w in zip(tokens[1:], weights, strict=True))]
            lengths = [int((documents[: kept - 1] == d).sum()) for d in sorted(set(documents[: kept - 1].tolist()))]
            lengths[-1] += 1
            rows.append({"input_ids": tokens[:kept].tolist(), "labels": labels[:kept], "seq_lengths": lengths})
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    config = trl.SFTConfig(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=given.precision == "bf16",
        gradient_checkpointing=False,
        padding_free=True, max_length=None, per_device_train_batch_size=1, shuffle_dataset=False,
        disable_tqdm=True,
        gradient_accumulation_steps=given.sequences, learning_rate=spec.optimizer.lr, lr_scheduler_type="constant",
        weight_decay=0.0, adam_beta2=spec.optimizer.beta2, max_grad_norm=spec.optimizer.grad_clip,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, optim="adamw_torch_fused",
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    trainer = trl.SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.create_optimizer()
    trained = [int(sum(label != -100 for label in row["labels"])) for row in rows]

    def step(number: int) -> float:
        part = slice(number * given.sequences, (number + 1) * given.sequences)
        total = 0.0
        for row in rows[part]:
            inputs = trainer.data_collator([row])
            loss = trainer.training_step(trainer.model, inputs, torch.tensor(sum(trained[part])))
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), spec.optimizer.grad_clip)
        for group in trainer.optimizer.param_groups:
            group["lr"] = spec.lr(number)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return total

    return step


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder of SmolLM2-135M")
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=2, help="of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3, help="most questions in a conversation")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    clock = CLOCKS[given.clock]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = SftOptions(
            context_length=given.context_length,
            batch_tokens=given.context_length * given.sequences,
            precision=given.precision,
            lr=1e-4,
        )
        spec, order, counts = prepared(given, folder, options)
        contestants = {"armillary": ours(given, order, spec), "trl": trl_steps(given, order, spec, folder)}
        first = {key: step(0) for key, step in contestants.items()}  # warm, and the same to rounding
        if abs(first["armillary"] - first["trl"]) > (1e-3 if given.precision == "fp32" else 3e-2):
            raise SystemExit(f"the losses of the first batch differ: {first}")
        rates: dict[str, list[float]] = {key: [] for key in contestants}
        for number in range(1, 1 + given.rounds):
            for key, step in contestants.items():
                begin = clock()
                loss = step(number)
                rates[key].append(order.weight(number) / (clock() - begin))
                print(f"round {number}: {key} {rates[key][-1]:.1f} trained tokens/s, loss {loss:.4f}", flush=True)
    ratio = statistics.median(a / b for a, b in zip(rates["armillary"], rates["trl"], strict=True))
    share = counts.trained / counts.tokens
    table = [[key, f"{statistics.median(found):.1f}"] for key, found in rates.items()]
    print(markdown(["trainer", "trained tokens/s"], table))
    print(f"ratio {ratio:.2f}; {share:.0%} of the tokens are trained; loss of the first batch {first}")
    write_json(given.json, "sft", rates=rates, ratio=ratio, trained_share=share, first_loss=first, **{
        "precision": given.precision, "threads": torch.get_num_threads(), "clock": given.clock,
        "context_length": given.context_length, "sequences": given.sequences,
    })  # fmt: skip


if __name__ == "__main__":
    main()
