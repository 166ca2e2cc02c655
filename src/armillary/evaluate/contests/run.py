"""Examine models in a contest: each method with its score, its gain over ``plain``, and its cost in tokens.

The contest's train file is cut into two parts. Examples for prompts come from the first. The weights of a vote are
learned from the second, the *development part*. No item of either shares a passage with an examined item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from armillary.evaluate.asking import Asker, file_name
from armillary.evaluate.contests.contest import Answer, Contest, Item, Score
from armillary.evaluate.contests.files import write_predictions
from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.prompting import (
    BM25,
    SIMILARITIES,
    Answered,
    Examples,
    Method,
    answer_items,
    method_named,
)
from armillary.evaluate.results import Examination, Result, engine_of, item_id, named_model, write_examination
from armillary.evaluate.results import Item as Row
from armillary.evaluate.voting import Weights, learn_weights, vote
from armillary.recipe import UsageError, canonical_hash, write_sealed

VOTE = "vote"
DEVELOPMENT = 100
ITEM_SCORE = "item_score"


@dataclass(frozen=True)
class ContestOptions:
    """Data and methods of a contest run.

    Attributes:
        data: folder with the contest's files; None takes the items shipped with this package, if any.
        methods: names of methods (``prompting.method_named``), and "vote", which combines all others. ``plain`` is
            always included, as the base of the others' gains.
        limit: examine this many items, chosen by their hash; None examines all.
        shots: number of few-shot examples.
        samples: number of answers for self-consistency.
        development: items of the train file that the vote learns from; None takes 100, or a third of a small file.
        similarity: how examples are found, a name from ``prompting.SIMILARITIES``.
    """

    data: Path | None = None
    methods: tuple[str, ...] = ("plain",)
    limit: int | None = None
    shots: int = 4
    samples: int = 5
    development: int | None = None
    similarity: str = BM25

    def __post_init__(self) -> None:
        for name in ("limit", "shots", "samples", "development"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, given {value}")
        if self.similarity not in SIMILARITIES:
            raise UsageError(f"similarity {self.similarity!r}: known are {', '.join(SIMILARITIES)}")
        if len(set(self.methods)) < len(self.methods):
            raise UsageError(f"methods {','.join(self.methods)}: give each only once")
        for name in self.methods:
            if name != VOTE:
                method_named(name, self.shots, self.samples)

    @property
    def asked(self) -> list[str]:
        """The methods that prompt models: ``plain`` first, since the gain of every other is measured against it."""
        return ["plain", *(name for name in self.methods if name not in ("plain", VOTE))]


@dataclass(frozen=True)
class Parts:
    """The items of a contest: to examine, for examples, and for learning a vote."""

    examined: list[Item]
    examples: list[Item]
    development: list[Item]


@dataclass(frozen=True)
class Entry:
    """The result of one system with one method.

    Attributes:
        system: name of the model, of the file of predictions, or of all voters together.
        method: how the model was prompted; "predictions" for a file.
        scores: the official metrics.
        gain: main metric against the base, paired by item; None for the base itself.
        base: "plain" with the same model; for the vote, the voter that is best on the development part.
        prompt_tokens, new_tokens: per examined item; None for a file.
        unread: share of items without a readable answer.
        truncated: share of items with an output cut by the token limit.
        weights: weights of the voters; None unless this is a vote.
    """

    system: str
    method: str
    scores: list[Score]
    gain: Score | None = None
    base: str | None = None
    prompt_tokens: float | None = None
    new_tokens: float | None = None
    unread: float = 0.0
    truncated: float = 0.0
    weights: dict[str, Any] | None = None
    answers: dict[str, Answer | None] = field(default_factory=dict, repr=False)
    examination: Examination | None = field(default=None, repr=False)

    def row(self, metric: str) -> list[Any]:
        """System and method, main metric and gain with intervals, tokens per item, shares of unread and cut answers."""
        main = next(score for score in self.scores if score.metric == metric)
        gain = [None] * 3 if self.gain is None else [self.gain.value, self.gain.low, self.gain.high]
        cost = [None if tokens is None else round(tokens) for tokens in (self.prompt_tokens, self.new_tokens)]
        return [self.system, self.method, main.value, main.low, main.high, *gain, *cost, self.unread, self.truncated]

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the answers and the examination."""
        return asdict(replace(self, answers={}, examination=None))


def contest_parts(contest: Contest, options: ContestOptions) -> Parts:
    """The items of the contest's files, cut into parts.

    Raises:
        UsageError: no data, a missing or damaged file, or too few items in the train file.
    """
    folder = options.data or contest.own_data
    if folder is None:
        raise UsageError(
            f"{contest.title}: give the folder that contains {contest.train_file} and {contest.test_file} with --data"
        )
    examined = by_hash(contest.items(folder / contest.test_file))[: options.limit]
    seen = {name for item in examined for name in (item.cluster, item.fingerprint)}
    train = [
        item
        for item in by_hash(contest.items(folder / contest.train_file))
        if item.cluster not in seen and item.fingerprint not in seen
    ]
    return cut(train, examined, options.development)


def cut(train: Sequence[Item], examined: Sequence[Item], development: int | None) -> Parts:
    """Split ``train`` into two parts without a common passage: the second gets ``development`` items or a few more.

    Raises:
        UsageError: no items are left for examples.
    """
    wanted = min(DEVELOPMENT, len(train) // 3) if development is None else development
    clusters: dict[str, int] = {}
    for item in train:
        clusters[item.cluster] = clusters.get(item.cluster, 0) + 1
    apart: set[str] = set()
    count = 0
    for cluster, size in clusters.items():
        if count >= wanted:
            break
        apart.add(cluster)
        count += size
    if len(apart) == len(clusters):
        raise UsageError(
            f"{len(train)} items for examples and development, but {wanted} development items were requested; "
            "use fewer with --development"
        )
    parts = [[item for item in train if (item.cluster in apart) == side] for side in (False, True)]
    return Parts(list(examined), *parts)


def by_hash(items: Sequence[Item]) -> list[Item]:
    """The items sorted by a hash of question and id, so that the order does not depend on the file."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{item.fingerprint} {item.id}".encode()).hexdigest())


def run_contest(
    contest: Contest,
    parts: Parts,
    models: Mapping[str, Asker],
    predictions: Mapping[str, Path],
    options: ContestOptions,
) -> list[Entry]:
    """Score models and files of predictions, and combine them by vote.

    Args:
        parts: the items, from ``contest_parts``.
        models: by name.
        predictions: by name, files in the contest's own format. For a vote, each file must also answer the development
            part (``contest_parts``).

    Raises:
        UsageError: too few voters, a missing or damaged file, a duplicate name, or a prompt that is too long.
    """
    if VOTE in options.methods and len(models) * len(options.asked) + len(predictions) < 2:
        raise UsageError("a vote needs at least two voters: models, methods, or files of predictions")
    both = sorted(set(models) & set(predictions))
    if both:
        raise UsageError(f"{', '.join(both)} names both a model and a file of predictions")
    voting = VOTE in options.methods
    asked = [*parts.examined, *(parts.development if voting else [])]
    examples = None
    if any(method_named(name).shots for name in options.asked):
        examples = Examples(parts.examples, SIMILARITIES[options.similarity]([item.text for item in parts.examples]))
    entries: list[Entry] = []
    voters: dict[str, Mapping[str, Answer | None]] = {}
    for model, asker in models.items():
        for name in options.asked:
            method = method_named(name, options.shots, options.samples)
            done = answer_items(contest, parts.examined, method, examples, asker)
            entry = _entry(contest, parts.examined, (model, name), done, entries)
            pool = parts.examples if method.shots else []
            saved = _examination(
                contest, parts.examined, done, _settings(contest, method, pool, options.similarity), asker
            )
            entries.append(replace(entry, examination=saved))
            answers = dict(done.answers)
            if voting:
                answers.update(answer_items(contest, parts.development, method, examples, asker).answers)
            voters[f"{model} {name}"] = answers
    for name, path in predictions.items():
        found = contest.predictions(path, None)
        lacking = [item.id for item in asked if item.id not in found]
        if lacking and voting:
            raise UsageError(
                f"{path}: {len(lacking)} of the {len(asked)} examined and development items have no answer "
                f"({', '.join(lacking[:3])}…); a vote needs all answers"
            )
        voters[name] = found
        mine = {item.id: found.get(item.id) for item in parts.examined}
        scores = contest.examine(parts.examined, mine)
        unread = sum(answer is None for answer in mine.values()) / len(mine)
        entries.append(Entry(name, "predictions", scores, unread=unread, answers=mine))
    if voting:
        entries.append(_vote(contest, parts, voters, entries))
    return entries


def _entry(
    contest: Contest, items: Sequence[Item], named: tuple[str, str], done: Answered, entries: Sequence[Entry]
) -> Entry:
    model, method = named
    plain = next((entry for entry in entries if (entry.system, entry.method) == (model, "plain")), None)
    return Entry(
        model,
        method,
        contest.examine(items, done.answers),
        None if plain is None else contest.gain(items, done.answers, plain.answers),
        None if plain is None else "plain",
        done.prompt_tokens / len(items),
        done.new_tokens / len(items),
        sum(answer is None for answer in done.answers.values()) / len(items),
        len(done.truncated) / len(items),
        None,
        done.answers,
    )


def _settings(contest: Contest, method: Method, pool: Sequence[Item], similarity: str) -> str:
    """Hash of everything that an answer depends on, except the model and the question."""
    prompts = [contest.instruction(None), contest.coarse_instruction() if method.coarse_to_fine else ""]
    settings = {"method": asdict(method), "prompts": prompts, "examples": [item.fingerprint for item in pool]}
    # Left out without a search and with BM25, so that earlier examinations keep their hash.
    return canonical_hash(settings | ({"similarity": similarity} if pool and similarity != BM25 else {}))


def _examination(contest: Contest, items: Sequence[Item], done: Answered, settings: str, asker: Asker) -> Examination:
    """The raw outputs and the score of each item, in the format of an examination folder."""
    rows = tuple(
        Row(
            item_id(contest.name, item.subset or contest.name, {"id": item.id, "question": item.question}),
            item.subset or contest.name,
            item.cluster,
            settings,
            item.gold,
            tuple(done.outputs[item.id]),
            done.answers[item.id],
            None,
            {ITEM_SCORE: contest.value(item, done.answers[item.id])},
            item.id in done.truncated,
        )
        for item in items
    )
    cost = {"prompt_tokens": done.prompt_tokens, "new_tokens": done.new_tokens, "requests": done.requests}
    mean = mean_interval([row.scores[ITEM_SCORE] for row in rows], [row.cluster for row in rows])
    whole = Result(
        *(contest.name, contest.name, ITEM_SCORE, mean.value, mean.low, mean.high),
        *(len(rows), len(done.truncated) / len(rows), None, settings),
    )
    engine = engine_of(asker.identity, f"contest {contest.name}")
    return Examination((whole,), {contest.name: rows}, named_model(asker.identity), engine, cost)


def _vote(
    contest: Contest, parts: Parts, voters: Mapping[str, Mapping[str, Answer | None]], entries: Sequence[Entry]
) -> Entry:
    """The vote of all voters, compared with the voter that is best on the development part."""
    weights: Weights = learn_weights(contest, parts.development, voters)
    answers = vote(contest, weights, parts.examined, voters)
    best = max(voters, key=lambda name: contest.main_value(parts.development, voters[name]))
    prompt, new = (
        sum(tokens for entry in entries if (tokens := getattr(entry, name)) is not None)
        for name in ("prompt_tokens", "new_tokens")
    )
    shown = {"voters": weights.voters, "share": weights.share, "development": len(parts.development)}
    return Entry(
        f"{len(voters)} voters",
        VOTE,
        contest.examine(parts.examined, answers),
        contest.gain(parts.examined, answers, voters[best]),
        best,
        prompt,
        new,
        sum(answer is None for answer in answers.values()) / len(answers),
        0.0,
        shown,
        answers,
    )


def write_entries(contest: Contest, folder: Path, entries: Sequence[Entry]) -> None:
    """Write the predictions of each entry to ``folder`` as SYSTEM.METHOD.jsonl, in the contest's own format.

    Next to it, SYSTEM.METHOD is an examination folder with the raw outputs, for ``armillary leaderboard`` and
    ``armillary evaluate compare``. Its metric is ``item_score``, the mean of the single items' scores. ``contest.json``
    has the official scores of all entries.
    """
    document = {"format": 1, "contest": contest.name, "entries": [entry.to_json() for entry in entries]}
    write_sealed(folder / "contest.json", document)
    for entry in entries:
        items = [Item(answered, "", "", "", "", ()) for answered in entry.answers]
        name = file_name(f"{entry.system}.{entry.method}")
        write_predictions(contest, folder / f"{name}.jsonl", items, entry.answers)
        if entry.examination is not None:
            write_examination(folder / name, entry.examination)
