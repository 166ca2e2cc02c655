"""Supervised fine-tuning of a model in a Hugging Face folder on a file of conversations.

The run is one of the trainer like every other: its specification has the objective ``supervised`` and starts from the
model's weights, so it resumes, and has the same numbers in every layout. The corpus that its examples belong to is the
model's tokenizer, without text. A folder holds all of it::

    OUT/settings.json       what was asked for, with the hashes of model and data; sealed
    OUT/corpus/HASH/        the tokenizer, and the examples as tokens and weights
    OUT/start.safetensors   the model's weights under our names; removed at the end
    OUT/before.json         the loss on the held-out conversations before the first step; sealed
    OUT/run/                the run
    OUT/model/              the trained model with its tokenizer and template, which ``transformers`` loads
    OUT/adapter/            with ``lora``: the adapter alone, as peft has it; the model has it merged
    OUT/record.json         settings, counts, losses before and after, and hashes; sealed, written last

The same call resumes it; a call with other settings or changed files is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors.torch import load_file

from armillary.corpus import Corpus, Example, SupervisedOrder, open_examples, write_examples, write_vocabulary
from armillary.launch import launch, launched
from armillary.model import export_adapter, import_hf, load_weights, read_shape, save_weights
from armillary.post.chat_model import export_chat, longest_context
from armillary.post.check import Checked, Counts, check_packing
from armillary.post.formats import Conversation, read_conversations
from armillary.post.held_out import HeldOut, held_out_loss
from armillary.post.plan import Plan, SftOptions, plan_for
from armillary.post.template import Rendered, Renderer, open_renderer
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    LargeRun,
    Layout,
    RunSpec,
    Start,
    UsageError,
    exclusive,
    read_sealed,
    write_sealed,
)
from armillary.train import ADAPTER, Hook, InterruptedRunError, RunResult, default_device, start_from, train_run

if TYPE_CHECKING:
    import torch

    from armillary.model import Transformer

FORMAT = 1
_PREPARED = ("data.json", "held-out.json", "before.json", "start.json", "start.safetensors")
REMEDY = "remove it, and the same command makes it again"

Progress = Callable[[str, float, float, str], None]


@dataclass(frozen=True)
class SftResult:
    """A finished fine-tuning: where the model is, the run's result, and nats per assistant token on the held-out
    conversations before and after (None without them).
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


class Silent:
    """A reporter of ranks that says nothing."""

    def __call__(self, stage: str, done: float, total: float, note: str) -> None:
        """Progress."""

    def say(self, text: str) -> None:
        """A line for a person."""

    def close(self) -> None:
        """The end."""


@dataclass(frozen=True)
class Handling:
    """How the work is carried out, which changes no number: ``progress`` takes stage, units done and in all, and a
    note; ``stop`` is asked after each step and conversation; ``hooks`` act in the run. With a ``layout`` its ranks are
    started on this machine, and the first reports to what ``reporter()`` makes (``launch``).
    """

    progress: Progress = lambda stage, done, total, note: None
    stop: Callable[[], bool] = lambda: False
    hooks: tuple[Hook, ...] = ()
    device: torch.device | None = None
    layout: Layout | None = None
    reporter: Callable[[], Any] = Silent

    def advance(self, stage: str, done: float, total: float, note: str) -> None:
        """Report progress outside of the run.

        Raises:
            InterruptedRunError: ``stop()`` returned true.
        """
        self.progress(stage, done, total, note)
        if self.stop():
            raise InterruptedRunError(f"stopped during '{stage}'; the same call continues")


def fine_tune(
    model: Path,
    data: Path,
    out: Path,
    options: SftOptions = SftOptions(),
    *,
    held_out: Path | None = None,
    handling: Handling = Handling(),
) -> SftResult:
    """Fine-tune the model in the folder ``model`` on the conversations in ``data``; all results lie in ``out``.

    Called again it resumes, or returns the result. ``held_out`` is a file of conversations whose loss is taken before
    and after.

    Raises:
        UsageError: model, data or options cannot be trained (``check`` says what is refused), or ``out`` holds another
            fine-tuning; names file, line and remedy.
        InterruptedRunError: ``handling.stop()`` returned true; call again to resume.
        DivergedError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    if launched():
        raise UsageError("a launcher has started this process as a rank; start one, which starts the ranks of a layout")
    shape = read_shape(model)
    renderer = open_renderer(model, options.template)
    settings = {
        **asdict(replace(options, lora=None)),
        "lora": options.lora and options.lora.model_dump(mode="json"),
        "chat_template": renderer.chat.source,
        "model": _digest_model(model),
        "data": _digest(data),
        "held_out": None if held_out is None else _digest(held_out),
    }
    with _claimed(out, settings):
        done = _finished(out)
        plan, corpus, held = _prepared(_Sources(model, data, held_out), out, options, renderer, handling)
        if handling.layout is not None:
            handling.layout.check(plan.spec)
        if done is None:
            for line in plan.lines():
                handling.progress("plan", 0, 1, line)
        before = done["loss_before"] if done else _before(out, plan, corpus, held, handling)
        total = plan.spec.steps
        if handling.layout is None:
            result = train_run(
                plan.spec,
                corpus,
                out / "run",
                device=handling.device,
                progress=lambda step: handling.progress("train", step, total, f"step {step} of {total}"),
                stop=handling.stop,
                hooks=_watching(plan, corpus, held, handling),
            )
        else:
            large = LargeRun(name="sft", corpus=str(corpus.path), run=plan.spec, layout=handling.layout)
            result = cast(RunResult, launch(large, out / "run", reporter=handling.reporter))
        counts = held and held[1]
        if done is not None and done["run"] == result.run:
            return SftResult(out / "model", result, plan, before, done["loss_after"], counts)
        trained = load_weights(out / "run" / "model.safetensors", shape)
        after = None if held is None else _loss(trained, plan.spec, corpus, held[0], "after", handling)
        export_chat(trained, model, out / "model", renderer, options.dtype)
        if options.lora is not None:
            state = load_file(out / "run" / ADAPTER)
            export_adapter(shape, options.lora, state, out / "adapter", str(model.resolve()))
        found = SftResult(out / "model", result, plan, before, after, counts)
        _write(out / "record.json", {"format": FORMAT, **found.to_json(), "settings": settings})
        with contextlib.suppress(OSError):
            (out / "start.safetensors").unlink()
        return found


@dataclass(frozen=True)
class DataCheck:
    """What ``check_data`` found: the counts, one conversation in pieces of text with whether each is trained, how many
    conversations were compared packed and alone (None: the folder has no weights), and the plan of a run.
    """

    counts: Counts
    sample: Rendered
    pieces: tuple[tuple[str, bool], ...]
    plan: Plan
    compared: int | None

    def lines(self) -> list[str]:
        """The findings for a person to read."""
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
    """Everything that ``fine_tune`` refuses before its first step, and how conversation number ``sample`` is rendered.

    Nothing is kept.

    Raises:
        UsageError: the data cannot be trained with this model; names file and line. Or there is no such sample.
    """
    renderer = open_renderer(model, options.template)
    shown: list[Rendered] = []

    def watched(conversations: Iterator[Rendered]) -> Iterator[Rendered]:
        for number, one in enumerate(conversations, 1):
            if number == sample:
                shown.append(one)
            yield one

    with tempfile.TemporaryDirectory() as folder:
        corpus = _corpus(model, Path(folder), renderer)
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
    """Examples written and checked, the run that they make, and the held-out examples with their counts."""
    model = sources.model
    shape, corpus = read_shape(model), _corpus(model, out / "corpus", renderer)

    def written(path: Path, what: str) -> tuple[str, Counts]:
        kept = out / f"{what}.json"
        with contextlib.suppress(FileNotFoundError, UsageError, DamagedFileError):
            found = read_sealed(kept, "record of examples", FORMAT, REMEDY)
            return open_examples(corpus, found["examples"]).hash, Counts(**found["counts"])
        name, counts = _written(corpus, _checked(model, options, renderer), path, handling)
        _write(kept, {"format": FORMAT, "examples": name, "counts": counts.to_json()})
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
    spec = RunSpec(**{**dict(spec), "start": _start(out, weights), "adapter": options.lora})
    end = str(renderer.text.tokenizer.id_to_token(renderer.end))
    return Plan(spec, counts, renderer.template, end, sequences), corpus, held


def _corpus(model: Path, root: Path, renderer: Renderer) -> Corpus:
    end = str(renderer.text.tokenizer.id_to_token(renderer.end))
    return write_vocabulary(root, (model / "tokenizer.json").read_text(encoding="utf-8"), end)


def _checked(model: Path, options: SftOptions, renderer: Renderer) -> Checked:
    most = longest_context(model)  # a packed sequence may be longer, a conversation not
    longest = most if options.context_length is None else min(most, options.context_length)
    return Checked(renderer, longest + 1, read_shape(model).vocab_size, options.too_long)


def _written(
    corpus: Corpus,
    checked: Checked,
    path: Path,
    handling: Handling,
    watch: Callable[[Iterator[Rendered]], Iterator[Rendered]] = lambda rendered: rendered,
) -> tuple[str, Counts]:
    """The examples that the conversations in ``path`` make, written: their hash, and what was counted."""
    rendered = watch(checked.of(_watched(read_conversations(path), path, handling)))
    examples = (Example(one.tokens, [float(weight) for weight in one.trained]) for one in rendered)
    return write_examples(corpus, path.stem, examples).hash, checked.counts


def _watched(conversations: Iterator[Conversation], path: Path, handling: Handling) -> Iterator[Conversation]:
    """The same, with progress by the lines of the file."""
    with open(path, "rb") as file:
        lines = 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    for number, one in enumerate(conversations, 1):
        line = int(one.where.rpartition(":")[2])
        handling.advance(path.name, min(line, lines), lines, f"{number} conversations")
        yield one


def _start(out: Path, weights: Path) -> Start:
    """The start of the run; its hash is kept beside it, since the weights are removed when it is done."""
    kept = out / "start.json"
    try:
        return Start(weights=str(weights.resolve()), sha256=read_sealed(kept, "start", FORMAT, REMEDY)["weights"])
    except FileNotFoundError:
        start = start_from(weights)
        _write(kept, {"format": FORMAT, "weights": start.sha256})
        return start


def _before(out: Path, plan: Plan, corpus: Corpus, held: tuple[str, Counts] | None, handling: Handling) -> float | None:
    """The loss on the held-out examples before the first step, taken once."""
    if held is None:
        return None
    path = out / "before.json"
    try:
        return float(read_sealed(path, "loss before the first step", FORMAT, REMEDY)["loss"])
    except FileNotFoundError:
        model = load_weights(out / "start.safetensors", plan.spec.model)
        loss = _loss(model, plan.spec, corpus, held[0], "before", handling)
        _write(path, {"format": FORMAT, "loss": loss})
        return loss


def _held_order(spec: RunSpec, corpus: Corpus, examples: str) -> SupervisedOrder:
    sizes = {"context_length": spec.context_length, "pad": corpus.manifest.end_of_text_id}
    return SupervisedOrder(open_examples(corpus, examples), seed=0, batch_sequences=1, **sizes)


def _watching(plan: Plan, corpus: Corpus, held: tuple[str, Counts] | None, handling: Handling) -> tuple[Hook, ...]:
    """The hooks of a run: those that were given, and the loss on held-out conversations after each pass."""
    if held is None:
        return handling.hooks
    every, steps = -(-plan.sequences // plan.spec.batch_sequences), plan.spec.steps

    def note(number: int, loss: float) -> None:
        handling.progress("held out", number, -(-steps // every), f"{loss:.4f} nats per token after pass {number}")

    return (HeldOut(_held_order(plan.spec, corpus, held[0]), every, steps, note), *handling.hooks)


def _loss(model: Transformer, spec: RunSpec, corpus: Corpus, examples: str, stage: str, handling: Handling) -> float:
    order = _held_order(spec, corpus, examples)
    model.to(handling.device or default_device())
    name = f"loss {stage}"
    return held_out_loss(model, order, lambda done, total: handling.advance(name, done, total, "held-out sequences"))


# ---- files ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _claimed(out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """The folder ``out``, locked, and sure to be that of these ``settings``."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; name a folder with --out")
    with exclusive(out / ".lock", "fine-tunes there"):
        path = out / "settings.json"
        try:
            found = read_sealed(path, "settings of a fine-tuning", FORMAT, REMEDY)
        except FileNotFoundError:
            if foreign := sorted(entry.name for entry in out.iterdir() if entry.name != ".lock"):
                raise UsageError(
                    f"{out}: holds {foreign[0]!r} and no fine-tuning; name a folder that is new with --out"
                ) from None
            _write(path, {"format": FORMAT, **settings})
        else:
            wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
            other = [name for name in wanted if found.get(name) != wanted[name]]
            if other and not (out / "run").exists():  # nothing is trained yet: what was prepared gives way
                for name in _PREPARED:
                    (out / name).unlink(missing_ok=True)
                _write(path, {"format": FORMAT, **settings})
            elif other:
                raise UsageError(
                    f"{out}: holds a fine-tuning with another {' and '.join(other)} ({found.get(other[0])!r:.80}, now "
                    f"{wanted[other[0]]!r:.80}); give the same, another --out, or remove the folder"
                )
        yield


def _finished(out: Path) -> dict[str, Any] | None:
    """The record of ``out`` where its model is there too."""
    try:
        record = read_sealed(out / "record.json", "record of a fine-tuning", FORMAT, REMEDY)
    except FileNotFoundError:
        return None
    return record if (out / "model" / "config.json").exists() else None


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        write_sealed(path, document)
    except OSError as error:
        raise ArmillaryError(f"{path}: cannot be written ({error.strerror}); make room and call again") from error


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); name one that is there") from error


def _digest_model(folder: Path) -> str:
    """A hash of the files that decide what is trained."""
    total = hashlib.sha256()
    names = [*sorted(p.name for p in folder.glob("*.safetensors")), "config.json", "tokenizer.json"]
    for name in names:
        total.update(f"{name} {_digest(folder / name)}\n".encode())
    return total.hexdigest()
