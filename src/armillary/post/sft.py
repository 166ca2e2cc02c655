"""Supervised fine-tuning of a model in a Hugging Face folder on a file of conversations.

The run is an ordinary run of the trainer: its specification has the objective ``supervised`` and starts from the
model's weights. It therefore resumes, and has the same numbers in every layout. Its corpus holds the model's tokenizer
and the examples, but no text. One folder holds everything::

    OUT/settings.json       the settings, with the hashes of model and data; sealed
    OUT/corpus/HASH/        the tokenizer, and the examples as tokens and weights
    OUT/start.safetensors   the model's weights under our names; removed at the end
    OUT/before.json         the loss on the held-out conversations before the first step; sealed
    OUT/run/                the run
    OUT/model/              the trained model with its tokenizer and template, which ``transformers`` loads
    OUT/adapter/            with ``lora``: the adapter in peft's format; in the model it is merged
    OUT/record.json         settings, counts, losses before and after, and hashes; sealed, written last

The same call resumes the training; a call with other settings or changed files is refused.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armillary.corpus import Corpus, Example, SupervisedOrder, open_examples, write_examples
from armillary.model import import_hf, load_weights, read_shape, save_weights
from armillary.post.chat_model import Tuned, export_tuned, longest_context
from armillary.post.check import Checked, Counts, check_packing
from armillary.post.formats import read_conversations
from armillary.post.held_out import HeldOut, held_out_loss
from armillary.post.plan import Plan, SftOptions, plan_for
from armillary.post.template import Rendered, Renderer, open_renderer
from armillary.post.tuning import (
    FORMAT,
    REMEDY,
    Handling,
    Work,
    claimed,
    conclude,
    digest,
    digest_model,
    finished,
    read_along,
    refuse_ranks,
    start_of,
    train,
    vocabulary,
    write,
)
from armillary.recipe import (
    DamagedFileError,
    RunResult,
    RunSpec,
    UsageError,
    read_sealed,
)
from armillary.train import Hook, default_device

if TYPE_CHECKING:
    from armillary.model import Transformer


@dataclass(frozen=True)
class SftResult:
    """A finished fine-tuning: the folder of the model, the run's result and the plan.

    ``before`` and ``after`` are nats per assistant token on held-out conversations; None without such conversations.
    """

    model: Path
    run: RunResult
    plan: Plan
    before: float | None = None
    after: float | None = None
    held_out: Counts | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "model": str(self.model),
            "run": self.run.run,
            "train_loss": self.run.train_loss,
            "steps": self.plan.spec.steps,
            "lr": self.plan.spec.optimizer.lr,
            "batch_sequences": self.plan.spec.batch_sequences,
            "context_length": self.plan.spec.context_length,
            "precision": self.plan.spec.precision,
            "template": self.plan.template,
            "end": self.plan.end,
            "data": self.plan.counts.to_json(),
            "held_out": None if self.held_out is None else self.held_out.to_json(),
            "loss_before": self.before,
            "loss_after": self.after,
            "wall_s": self.run.wall_s,
        }


def fine_tune(
    model: Path,
    data: Path,
    out: Path,
    options: SftOptions = SftOptions(),
    *,
    held_out: Path | None = None,
    handling: Handling = Handling(),
) -> SftResult:
    """Fine-tune the model in the folder ``model`` on the conversations in ``data``; write all results to ``out``.

    A second call resumes, or returns the result. ``held_out`` is a file of conversations whose loss is measured before
    and after.

    Raises:
        UsageError: model, data or options are not usable (see ``check``), or ``out`` holds another fine-tuning; the
            message names file, line and remedy.
        InterruptedRunError: ``handling.stop()`` returned true; call again to resume.
        DivergedError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    refuse_ranks()
    shape = read_shape(model)
    renderer = open_renderer(model, options.template)
    settings = {
        **options.settings(),
        "chat_template": renderer.chat.source,
        "model": digest_model(model),
        "data": digest(data),
        "held_out": None if held_out is None else digest(held_out),
    }
    with claimed(out, settings):
        done = finished(out)
        plan, corpus, held = _prepared(_Sources(model, data, held_out), out, options, renderer, handling)
        if handling.layout is not None:
            handling.layout.check(plan.spec)
        handling.planned(plan.spec)
        if done is None:
            for line in plan.lines():
                handling.progress("plan", 0, 1, line)
        before = done["loss_before"] if done else _before(out, plan, corpus, held, handling)
        watching = replace(handling, hooks=_watching(plan, corpus, held, handling))
        result = train(Work("sft", plan.spec, corpus, out / "run"), watching)
        counts = held and held[1]
        if done is not None and done["run"] == result.run:
            return SftResult(out / "model", result, plan, before, done["loss_after"], counts)
        trained = load_weights(out / "run" / "model.safetensors", shape)
        after = None if held is None else _loss(trained, _held_order(plan.spec, corpus, held[0]), "after", handling)
        export_tuned(Tuned(model, out, renderer, options), trained)
        found = SftResult(out / "model", result, plan, before, after, counts)
        conclude(out, settings, result.run, found.to_json())
        return found


@dataclass(frozen=True)
class DataCheck:
    """The findings of ``check_data``.

    They are the counts, one conversation in pieces of text with a flag for trained pieces, the number of conversations
    compared packed and alone (None: the folder has no weights), and the plan of a run.
    """

    counts: Counts
    sample: Rendered
    pieces: tuple[tuple[str, bool], ...]
    plan: Plan
    compared: int | None

    def lines(self) -> list[str]:
        """The findings as lines of text."""
        packing = (
            "not compared packed and alone: the folder has no weights"
            if self.compared is None
            else f"{self.compared} conversations have the same loss packed and alone"
        )
        return [*self.plan.lines(), packing]

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {
            "data": self.counts.to_json(),
            "template": self.plan.template,
            "end": self.plan.end,
            "sample": {
                "where": self.sample.where,
                "tokens": self.sample.tokens,
                "trained": self.sample.trained,
                "pieces": [{"text": text, "trained": trained} for text, trained in self.pieces],
            },
            "compared": self.compared,
            "steps": self.plan.spec.steps,
            "lr": self.plan.spec.optimizer.lr,
            "batch_sequences": self.plan.spec.batch_sequences,
            "context_length": self.plan.spec.context_length,
            "sequences": self.plan.sequences,
        }


def check_data(
    model: Path, data: Path, options: SftOptions = SftOptions(), *, sample: int = 1, handling: Handling = Handling()
) -> DataCheck:
    """Run all checks that ``fine_tune`` makes before its first step, and render conversation number ``sample``.

    No files are kept.

    Raises:
        UsageError: the data does not fit this model (the message names file and line), or there is no such sample.
    """
    renderer = open_renderer(model, options.template)
    shown: list[Rendered] = []

    def watched(conversations: Iterator[Rendered]) -> Iterator[Rendered]:
        for number, one in enumerate(conversations, 1):
            if number == sample:
                shown.append(one)
            yield one

    with tempfile.TemporaryDirectory() as folder:
        corpus = vocabulary(model, Path(folder), renderer)
        name, counts = _written(corpus, _checked(model, options, renderer), data, handling, watched)
        if not shown:
            raise UsageError(f"{data}: has {counts.conversations} conversations, so there is no number {sample}")
        spec, sequences = plan_for(read_shape(model), corpus, name, options, counts.longest)
        weights = any(model.glob("*.safetensors"))
        compared = check_packing(import_hf(model), SupervisedOrder.of(spec, corpus)) if weights else None
    plan = Plan(spec, counts, renderer.template, str(renderer.text.tokenizer.id_to_token(renderer.end)), sequences)
    return DataCheck(counts, shown[0], tuple(renderer.pieces(shown[0])), plan, compared)


@dataclass(frozen=True)
class _Sources:
    model: Path
    data: Path
    held_out: Path | None


def _prepared(
    sources: _Sources, out: Path, options: SftOptions, renderer: Renderer, handling: Handling
) -> tuple[Plan, Corpus, tuple[str, Counts] | None]:
    """Writes and checks the examples, plans the run, and prepares the held-out examples with their counts."""
    model = sources.model
    shape, corpus = read_shape(model), vocabulary(model, out / "corpus", renderer)

    def written(path: Path, what: str) -> tuple[str, Counts]:
        record = out / f"{what}.json"
        with contextlib.suppress(FileNotFoundError, UsageError, DamagedFileError):
            found = read_sealed(record, "record of examples", FORMAT, REMEDY)
            return open_examples(corpus, found["examples"]).hash, Counts(**found["counts"])
        name, counts = _written(corpus, _checked(model, options, renderer), path, handling)
        write(record, {"format": FORMAT, "examples": name, "counts": counts.to_json()})
        return name, counts

    held = None if sources.held_out is None else written(sources.held_out, "held-out")
    examples, counts = written(sources.data, "data")
    most = max(counts.longest, held[1].longest if held else 0)
    spec, sequences = plan_for(shape, corpus, examples, options, most)
    weights = out / "start.safetensors"
    if not weights.exists() and not (out / "run" / "result.json").exists():
        loaded = import_hf(model)
        check_packing(loaded, SupervisedOrder.of(spec, corpus))
        save_weights(loaded, weights)
    spec = RunSpec(**{**dict(spec), "start": start_of(out, weights), "adapter": options.lora})
    end = str(renderer.text.tokenizer.id_to_token(renderer.end))
    return Plan(spec, counts, renderer.template, end, sequences), corpus, held


def _checked(model: Path, options: SftOptions, renderer: Renderer) -> Checked:
    most = longest_context(model)  # a packed sequence may be longer, but not a conversation
    longest = most if options.context_length is None else min(most, options.context_length)
    return Checked(renderer, longest + 1, read_shape(model).vocab_size, options.too_long)


def _written(
    corpus: Corpus,
    checked: Checked,
    path: Path,
    handling: Handling,
    watch: Callable[[Iterator[Rendered]], Iterator[Rendered]] = lambda rendered: rendered,
) -> tuple[str, Counts]:
    """Write the conversations in ``path`` as examples; return their hash and counts."""
    rendered = watch(checked.of(read_along(read_conversations(path), path, handling)))
    examples = (Example(one.tokens, [float(weight) for weight in one.trained]) for one in rendered)
    return write_examples(corpus, path.stem, examples).hash, checked.counts


def _before(out: Path, plan: Plan, corpus: Corpus, held: tuple[str, Counts] | None, handling: Handling) -> float | None:
    """The loss on the held-out examples before the first step, measured once."""
    if held is None:
        return None
    path = out / "before.json"
    try:
        return float(read_sealed(path, "loss before the first step", FORMAT, REMEDY)["loss"])
    except FileNotFoundError:
        model = load_weights(out / "start.safetensors", plan.spec.model)
        loss = _loss(model, _held_order(plan.spec, corpus, held[0]), "before", handling)
        write(path, {"format": FORMAT, "loss": loss})
        return loss


def _held_order(spec: RunSpec, corpus: Corpus, examples: str) -> SupervisedOrder:
    sizes = {"context_length": spec.context_length, "pad": corpus.manifest.end_of_text_id}
    return SupervisedOrder(open_examples(corpus, examples), seed=0, batch_sequences=1, **sizes)


def _watching(plan: Plan, corpus: Corpus, held: tuple[str, Counts] | None, handling: Handling) -> tuple[Hook, ...]:
    """The hooks of a run: the given ones, and the loss on held-out conversations after each pass."""
    if held is None:
        return handling.hooks
    every, steps = -(-plan.sequences // plan.spec.batch_sequences), plan.spec.steps

    def note(number: int, loss: float) -> None:
        handling.progress("held out", number, -(-steps // every), f"{loss:.4f} nats per token after pass {number}")

    return (HeldOut(_held_order(plan.spec, corpus, held[0]), every, steps, note), *handling.hooks)


def _loss(model: Transformer, order: SupervisedOrder, stage: str, handling: Handling) -> float:
    model.to(handling.device or default_device())
    name = f"loss {stage}"
    return held_out_loss(model, order, lambda done, total: handling.advance(name, done, total, "held-out sequences"))
