"""Direct preference optimization of a model in a Hugging Face folder on a file of pairs of answers.

Like supervised fine-tuning (`sft`), but with the objective ``preference``: a run of the trainer that starts from the
model's weights and resumes. The log-probabilities of all answers under these weights are computed once and stored with
the tokens of the pairs. The folder is laid out like that of a fine-tuning, with sets of pairs instead of examples::

    OUT/corpus/HASH/        the tokenizer, and the pairs as tokens, weights and reference
    OUT/record.json         settings, counts, and how often the chosen answer of a held-out pair is the likelier one

Before the first step, both conversations of each pair pass the checks of a fine-tuning (`check`), and packed answers
are compared with single ones.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ValidationError

from armillary.corpus import Corpus, Example, Pair, Pairs, PreferenceOrder, open_pairs, write_pairs
from armillary.evaluate import Interval, mean_interval
from armillary.model import Transformer, import_hf, load_weights, read_shape, save_weights
from armillary.post.chat_model import Tuned, export_tuned, longest_context
from armillary.post.check import check_packing, check_rendered
from armillary.post.formats import AnswerPair, Conversation, read_pairs
from armillary.post.plan import Steps, TuningOptions, fast_precision, run_of
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
    ModelShape,
    Preference,
    PreferenceLoss,
    RunResult,
    RunSpec,
    UsageError,
    all_problems,
    read_sealed,
)
from armillary.train import answer_log_probs, default_device

BATCH_PAIRS = 32
_MOST_PROBLEMS = 10


@dataclass(frozen=True)
class DpoOptions(TuningOptions):
    """Options of a training on pairs.

    ``beta``, ``loss``, ``label_smoothing`` and ``sft_weight`` are as in ``recipe.Preference``. ``batch_pairs`` is the
    approximate number of pairs per step: by default 32, or fewer if a pass would have less than 10 steps. A sequence
    holds both answers of a pair with their prompts; ``too_long`` says how to treat a pair that does not fit. The
    warm-up takes a tenth of the steps.

    Raises:
        UsageError: a value outside its range.
    """

    beta: float = 0.1
    loss: PreferenceLoss = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    batch_pairs: int | None = None
    too_long: Literal["refuse", "drop"] = "refuse"

    LEAST: ClassVar[dict[str, float]] = {**TuningOptions.LEAST, "batch_pairs": 0, "context_length": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.objective("0" * 16)
        except ValidationError as error:
            raise UsageError("; ".join(all_problems(error))) from None

    def objective(self, pairs: str) -> Preference:
        """The objective over the set of ``pairs``."""
        return Preference(
            examples=pairs,
            beta=self.beta,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            sft_weight=self.sft_weight,
        )


@dataclass
class PairCounts:
    """Counts for a file of pairs.

    ``tokens`` counts all answers with their prompts; ``trained`` of these are in the loss. ``longest`` is the longest
    pair in tokens; ``dropped`` pairs were longer than a sequence.
    """

    pairs: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class PairScores:
    """How a model scores held-out pairs.

    ``likelier`` is the share of pairs whose chosen answer has the larger log-probability per token. ``accuracy`` is the
    share whose chosen answer has the larger implicit reward, and ``margin`` the mean difference of the rewards; both
    are None for the reference model itself.
    """

    likelier: Interval
    accuracy: Interval | None = None
    margin: float | None = None


@dataclass(frozen=True)
class DpoPlan:
    """The plan of a training: the run's specification, the counts of its data, and the template that rendered it."""

    spec: RunSpec
    counts: PairCounts
    template: str
    end: str
    sequences: int

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        spec, counts = self.spec, self.counts
        assert isinstance(spec.objective, Preference)
        lost = f", {counts.dropped} dropped" if counts.dropped else ""
        return [
            f"{counts.pairs} pairs with {counts.tokens:,} tokens, {counts.trained:,} in answers{lost}; template "
            f"'{self.template}', a turn ends with {self.end}",
            f"{spec.steps} steps of {spec.batch_sequences} x {spec.context_length} tokens ({self.sequences} packed "
            f"sequences, {spec.steps * spec.batch_sequences / self.sequences:.2f} passes), learning rate "
            f"{spec.optimizer.lr:.3g}, {spec.precision}; loss {spec.objective.loss}, beta {spec.objective.beta:g}",
        ]


@dataclass(frozen=True)
class DpoResult:
    """A finished training on pairs: the folder, the run's result, and scores on held-out pairs before and after."""

    model: Path
    run: RunResult
    plan: DpoPlan
    before: PairScores | None = None
    after: PairScores | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        spec = self.plan.spec
        return {
            "model": str(self.model),
            "run": self.run.run,
            "train_loss": self.run.train_loss,
            "measured": self.run.measured,
            "steps": spec.steps,
            "lr": spec.optimizer.lr,
            "batch_sequences": spec.batch_sequences,
            "context_length": spec.context_length,
            "precision": spec.precision,
            "objective": spec.objective.model_dump(mode="json"),
            "template": self.plan.template,
            "end": self.plan.end,
            "data": asdict(self.plan.counts),
            "before": None if self.before is None else asdict(self.before),
            "after": None if self.after is None else asdict(self.after),
            "wall_s": self.run.wall_s,
        }


def prefer(
    model: Path,
    data: Path,
    out: Path,
    options: DpoOptions = DpoOptions(),
    *,
    held_out: Path | None = None,
    handling: Handling = Handling(),
) -> DpoResult:
    """Train the model in the folder ``model`` on the pairs in ``data``; write all results to ``out``.

    A second call resumes, or returns the result. ``held_out`` is a file of pairs to score before and after.

    Raises:
        UsageError: model, data or options are not usable, or ``out`` holds something else; the message names file, line
            and remedy.
        InterruptedRunError: ``handling.stop()`` returned true; call again to resume.
        DivergedError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    refuse_ranks()
    renderer = open_renderer(model, options.template)
    settings = {
        **options.settings(),
        "objective": "preference",
        "chat_template": renderer.chat.source,
        "model": digest_model(model),
        "data": digest(data),
        "held_out": None if held_out is None else digest(held_out),
    }
    with claimed(out, settings):
        done = finished(out)
        plan, corpus, held = _Preparation(model, out, options, renderer, handling).of(data, held_out)
        if handling.layout is not None:
            handling.layout.check(plan.spec)
        if done is None:
            for line in plan.lines():
                handling.progress("plan", 0, 1, line)
        result = train(Work("dpo", plan.spec, corpus, out / "run"), handling)
        if done is not None and done["run"] == result.run:
            return DpoResult(out / "model", result, plan, *(_read_scores(done[name]) for name in ("before", "after")))
        trained = load_weights(out / "run" / "model.safetensors", plan.spec.model)
        before, after = (None, None) if held is None else _compared(trained, held, plan.spec, handling)
        export_tuned(Tuned(model, out, renderer, options), trained)
        found = DpoResult(out / "model", result, plan, before, after)
        conclude(out, settings, result.run, found.to_json())
        return found


def render_pair(renderer: Renderer, pair: AnswerPair, vocab_size: int) -> tuple[Example, Example]:
    """Both answers as examples: only the turns after the prompt are in the loss.

    Raises:
        UsageError: as ``Renderer.render`` and ``check_rendered``, or both have the same tokens; names file and line.
    """
    sides = []
    for side in ("chosen", "rejected"):
        turns = getattr(pair, side)
        conversation = Conversation((*pair.prompt, *turns), (), f"{pair.where}, {side}")
        # earlier answers are never trained, so it does not matter how the template renders them
        rendered = renderer.render_last(conversation) if len(turns) == 1 else renderer.render(conversation)
        check_rendered(rendered, renderer.end, vocab_size)
        sides.append(_example(rendered, len(rendered.turns) - sum(turn["role"] == "assistant" for turn in turns)))
    if list(sides[0].tokens) == list(sides[1].tokens):
        raise UsageError(f"{pair.where}: chosen and rejected are the same tokens; leave the pair out")
    return sides[0], sides[1]


def _example(rendered: Rendered, given: int) -> Example:
    weights = [0.0] * len(rendered.tokens)
    for turn in rendered.turns[given:]:
        weights[turn.start : turn.stop] = [1.0] * len(turn)
    return Example(rendered.tokens, weights)


def plan_for(shape: ModelShape, corpus: Corpus, pairs: Pairs, options: DpoOptions) -> tuple[RunSpec, int]:
    """The run over ``pairs`` without its start, and the number of packed sequences.

    Raises:
        UsageError: a pair does not fit into a sequence, or sizes do not fit together.
    """
    length = options.context_length or max(int(pairs.lengths.sum(1).max()) - 1, 2)
    sizes = {"seed": options.seed, "context_length": length, "pad": corpus.manifest.end_of_text_id}
    rows = PreferenceOrder(pairs, batch_sequences=1, **sizes).sequences
    # a small set needs many steps rather than large ones
    wanted = options.batch_pairs or min(BATCH_PAIRS, len(pairs) // 10)
    sequences = max(1, min(round(wanted * rows / len(pairs)), rows))
    # from 5e-7 for 7 billion parameters (Tunstall et al. 2023, arXiv 2310.16944), by the inverse root of the size
    lr = min(1e-4, 5e-7 * math.sqrt(7e9 / shape.parameters)) * (1 if options.lora is None else 10)
    steps = Steps(length, sequences, max(1, math.ceil(options.epochs * rows / sequences)), lr, warmup=0.1)
    spec = run_of(shape, corpus, options, steps, options.objective(pairs.hash))
    return spec, rows


@dataclass(frozen=True)
class _Preparation:
    """Prepares the run: renders the pairs, computes the reference, and plans the run."""

    model: Path
    out: Path
    options: DpoOptions
    renderer: Renderer
    handling: Handling

    def of(self, data: Path, held_out: Path | None) -> tuple[DpoPlan, Corpus, Pairs | None]:
        shape, corpus = read_shape(self.model), vocabulary(self.model, self.out / "corpus", self.renderer)
        weights = self.out / "start.safetensors"
        loaded: list[Transformer] = []

        def reference() -> Transformer:
            if not loaded:
                loaded.append(import_hf(self.model))
            return loaded[0]

        if not weights.exists() and not (self.out / "run" / "result.json").exists():
            save_weights(reference(), weights)
        start = start_of(self.out, weights)

        def written(path: Path, what: str) -> tuple[Pairs, PairCounts]:
            record = self.out / f"{what}.json"
            with contextlib.suppress(FileNotFoundError, UsageError, DamagedFileError):
                found = read_sealed(record, "record of pairs", FORMAT, REMEDY)
                return open_pairs(corpus, found["pairs"]), PairCounts(**found["counts"])
            counts = PairCounts()
            sides = self._sides(path, counts, shape.vocab_size)
            model = reference().to(self.handling.device or default_device())
            pairs = write_pairs(corpus, path.stem, start.sha256, self._with_reference(sides, model))
            write(record, {"format": FORMAT, "pairs": pairs.hash, "counts": asdict(counts)})
            return pairs, counts

        held = None if held_out is None else written(held_out, "held-out")[0]
        pairs, counts = written(data, "data")
        spec, sequences = plan_for(shape, corpus, pairs, self.options)
        spec = RunSpec(**{**dict(spec), "start": start, "adapter": self.options.lora})
        if not (self.out / "run").exists():
            check_packing(reference(), PreferenceOrder.of(spec, corpus))
        end = str(self.renderer.text.tokenizer.id_to_token(self.renderer.end))
        return DpoPlan(spec, counts, self.renderer.template, end, sequences), corpus, held

    def _sides(self, path: Path, counts: PairCounts, vocab_size: int) -> Iterator[tuple[Example, Example]]:
        """Both answers of each pair of a file; raises UsageError at the end, naming the first wrong pairs."""
        most = longest_context(self.model) + 1  # a packed sequence may be longer, but not an answer with its prompt
        room = math.inf if self.options.context_length is None else self.options.context_length + 1
        problems: list[str] = []
        wrong = 0
        for pair in read_along(read_pairs(path), path, self.handling):
            try:
                sides = render_pair(self.renderer, pair, vocab_size)
                too_long = self._too_long(sides, most, room)
                if too_long is not None and self.options.too_long == "refuse":
                    raise UsageError(f"{pair.where}: {too_long}, or give --too-long drop")
            except UsageError as error:
                wrong += 1
                problems += [str(error)] if wrong <= _MOST_PROBLEMS else []
                continue
            if too_long is not None:
                counts.dropped += 1
                continue
            size = sum(len(side.tokens) for side in sides)
            counts.pairs += 1
            counts.tokens += size
            counts.trained += sum(int(sum(side.weights)) for side in sides)
            counts.longest = max(counts.longest, size)
            yield sides
        if wrong:
            more = [f"… and {wrong - _MOST_PROBLEMS} more pairs"] if wrong > _MOST_PROBLEMS else []
            raise UsageError("\n".join([*problems, *more]))
        if not counts.pairs:
            raise UsageError(
                f"{path}: all {counts.dropped} pairs are too long and were dropped; raise --context-length, or shorten "
                "the answers"
            )

    @staticmethod
    def _too_long(sides: tuple[Example, Example], most: float, room: float) -> str | None:
        """The problem of a pair if an answer has more than ``most`` tokens, or both together more than ``room``."""
        sizes = [len(side.tokens) for side in sides]
        if max(sizes) > most:
            return f"an answer with its prompt has {max(sizes)} tokens, but the model reads only {most}; shorten it"
        if sum(sizes) > room:
            return (
                f"both answers and prompts have {sum(sizes)} tokens, but a sequence has {room} (context_length + 1); "
                "raise --context-length"
            )
        return None

    def _with_reference(self, sides: Iterator[tuple[Example, Example]], model: Transformer) -> Iterator[Pair]:
        ahead, behind = itertools.tee(sides)
        scores = answer_log_probs(
            model, itertools.chain.from_iterable(ahead), self.options.precision or fast_precision()
        )
        for chosen, rejected in behind:
            yield Pair(chosen, rejected, (next(scores), next(scores)))


def _compared(model: Transformer, pairs: Pairs, spec: RunSpec, handling: Handling) -> tuple[PairScores, PairScores]:
    """Scores of held-out pairs under the reference and under the trained ``model``."""
    assert isinstance(spec.objective, Preference)
    model.to(handling.device or default_device())
    parts = [part for number in range(len(pairs)) for part in pairs.parts(number)]
    examples = (Example(pairs.tokens[part].tolist(), pairs.weights[part].tolist()) for part in parts)
    scores = []
    for number, score in enumerate(answer_log_probs(model, examples, spec.precision), 1):
        scores.append(score)
        handling.advance("held-out pairs", number // 2, len(pairs), f"{number // 2} of {len(pairs)} pairs")
    found = np.array(scores).reshape(-1, 2)
    counts = np.array([pairs.weights[part][1:].sum() for part in parts]).reshape(-1, 2)

    def likelier(values: Any) -> Interval:
        each = values / counts
        return mean_interval((each[:, 0] > each[:, 1]).astype(float))

    rewards = spec.objective.beta * (found - pairs.reference)
    accuracy = mean_interval((rewards[:, 0] > rewards[:, 1]).astype(float))
    margin = float((rewards[:, 0] - rewards[:, 1]).mean())
    return PairScores(likelier(pairs.reference)), PairScores(likelier(found), accuracy, margin)


def _read_scores(document: dict[str, Any] | None) -> PairScores | None:
    if document is None:
        return None
    accuracy = document["accuracy"]
    return PairScores(
        Interval(**document["likelier"]), None if accuracy is None else Interval(**accuracy), document["margin"]
    )
