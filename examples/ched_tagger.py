"""Train a small model on CHED's training sentences with Armillary's trainer, and write its predictions.

The model reads a sentence character by character. ``DELAY`` characters later it writes the tag of each: the label of an
event whose trigger starts there, ``inside`` for the other characters of a trigger, or ``none``. Only tags have a weight
in the loss (objective ``Supervised``). Development items, from which a vote learns, are not trained on: ``contest_parts``
gives the same ones here and in ``armillary evaluate contest``.

    python examples/ched_tagger.py --data evaluation/ched --out ched-tagger
    armillary evaluate contest ched MODEL --data evaluation/ched --rival tagger=ched-tagger/predictions.jsonl \
        --method plain,vote
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from armillary.corpus import Corpus, Example, build_corpus, write_examples
from armillary.evaluate.contests import Answer, Item, contest_named, write_predictions
from armillary.evaluate.contests.ched import LABELS
from armillary.evaluate.contests.run import ContestOptions, contest_parts
from armillary.model import Transformer
from armillary.recipe import (
    CorpusSpec,
    DomainSpec,
    ModelShape,
    OptimizerSpec,
    RunSpec,
    Schedule,
    Supervised,
    TokenizerSpec,
    Validation,
)
from armillary.train import load_trained, train_run

DELAY = 4
LONGEST = 120  # characters of a sentence that is trained on
CONTEXT = 2 * LONGEST + DELAY
NONE, INSIDE, PAD, UNKNOWN, END = "〔none〕", "〔inside〕", "〔pad〕", "〔unknown〕", "<|endoftext|>"
TAGS = [NONE, INSIDE, *(f"〔{label}〕" for label in LABELS)]


def build(texts: Sequence[str], folder: Path) -> Corpus:
    """The sentences as a corpus with a tokenizer of single characters."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [END, UNKNOWN, PAD, *TAGS, *sorted(set("".join(texts)) | {"\n"})]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    spec = CorpusSpec(
        domains={"sentences": DomainSpec(source=str(folder / "sentences.txt"))},
        tokenizer=TokenizerSpec(file=str(folder / "tokenizer.json"), end=END),
        max_document_chars=100,
    )
    return build_corpus(spec, folder / "corpus", workers=1)


def tags_of(item: Item, offsets: dict[str, list[int]]) -> list[str]:
    """The tag of each character."""
    tags = [NONE] * len(item.text)
    for (trigger, label), start in zip(item.gold, offsets[item.id], strict=True):
        tags[start] = f"〔{label}〕"
        for place in range(start + 1, start + len(trigger)):
            tags[place] = INSIDE
    return tags


def interleaved(text: str, tags: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Characters and the tags so far, with the weight of each; without ``tags`` for the last, up to the next tag."""
    for place in range(len(text) + DELAY):
        yield (text[place] if place < len(text) else PAD), 0.0
        if place >= DELAY:
            if place - DELAY == len(tags):
                return
            yield tags[place - DELAY], 1.0


def read_offsets(path: Path) -> dict[str, list[int]]:
    """Where the events of each sentence start."""
    import json

    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {str(row["sen_id"]): [event["start_offset"] for event in row["events"]] for row in rows}


@torch.no_grad()
def tag(model: Transformer, ids: dict[str, int], items: Sequence[Item]) -> dict[str, Answer | None]:
    """The events of each sentence: the most likely tag of each character, given those before it."""
    first = ids[NONE]
    written: list[list[str]] = [[] for _ in items]
    for place in range(max(len(item.text) for item in items)):
        active = [number for number, item in enumerate(items) if place < len(item.text)]
        rows = [
            [ids.get(name, ids[UNKNOWN]) for name, _ in interleaved(items[number].text, written[number])]
            for number in active
        ]
        logits = (
            torch.cat([model.features(torch.tensor(part))[:, -1] for part in batches(rows)]) @ model.output_weight.T
        )
        for number, best in zip(active, logits[:, first : first + len(TAGS)].argmax(-1).tolist(), strict=True):
            written[number].append(TAGS[best])
    return {item.id: events(item.text, tags) for item, tags in zip(items, written, strict=True)}


def batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Rows of one length, 64 at a time."""
    for start in range(0, len(rows), 64):
        yield rows[start : start + 64]


def events(text: str, tags: Sequence[str]) -> Answer:
    """Triggers and labels from the tags."""
    found = []
    for place, name in enumerate(tags):
        if name not in (NONE, INSIDE):
            end = place + 1
            while end < len(tags) and tags[end] == INSIDE:
                end += 1
            found.append((text[place:end], name[1:-1]))
    return tuple(found)


def main() -> None:
    """Train, tag the examined and the development items, write the predictions, print the score."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CHED's train.jsonl and valid.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and of predictions.jsonl")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    contest = contest_named("ched")
    parts = contest_parts(contest, ContestOptions(arguments.data))
    trained = [item for item in parts.examples if len(item.text) <= LONGEST]
    corpus = build([item.text for item in trained], arguments.out)
    ids = corpus.tokenizer().get_vocab()
    offsets = read_offsets(arguments.data / contest.train_file)
    rows = [list(interleaved(item.text, tags_of(item, offsets))) for item in trained]
    examples = write_examples(
        corpus, "ched", [Example([ids[name] for name, _ in row], [weight for _, weight in row]) for row in rows]
    )
    shape = ModelShape(
        n_layers=3,
        d_model=arguments.width,
        n_heads=arguments.width // 32,
        n_kv_heads=arguments.width // 32,
        head_dim=32,
        d_ff=3 * arguments.width,
        vocab_size=corpus.manifest.vocab_size,
    )
    spec = RunSpec(
        corpus=corpus.hash,
        model=shape,
        context_length=CONTEXT,
        batch_sequences=16,
        steps=arguments.steps,
        mixture=(),
        schedule=Schedule(warmup_steps=arguments.steps // 20, decay_steps=arguments.steps // 3),
        optimizer=OptimizerSpec(lr=3e-3),
        seed=1,
        validation=Validation(windows=4),
        objective=Supervised(examples=examples.hash),
    )
    folder = arguments.out / spec.id
    result = train_run(spec, corpus, folder, progress=lambda step: print(f"\rstep {step}", end="", flush=True))
    epochs = ", ".join(f"{passes:.1f}" for passes in result.epochs.values())
    print(f"\n{len(trained)} sentences, {arguments.steps} steps ({epochs} epochs), {result.wall_s:.0f} s")
    asked = [*parts.examined, *parts.development]
    answers = tag(load_trained(folder, spec), ids, asked)
    write_predictions(contest, arguments.out / "predictions.jsonl", asked, answers)
    for score in contest.examine(parts.examined, answers):
        print(f"{score.metric:<10} {score.value:.4f}  {score.low:.4f} to {score.high:.4f}  n = {score.n}")


if __name__ == "__main__":
    main()
