"""Selects pairs to train on by the base model's likelihoods, and the same number at random for comparison.

The report on TeleChat2 (2024) selects pairs by the likelihood of their answers under the base model (reverse
selection). A chosen answer must be neither so unlikely that it is out of reach, nor so likely that there is nothing to
learn. A rejected answer must be likely, so that there is something to unlearn. Here, both bounds are quantiles over
the given pairs of the mean log-probability per token of an answer.

The folder is that of a stage (`stage`): ``items.jsonl`` holds every pair with its likelihoods in ``notes.base``. Next
to it, ``selected.jsonl`` and ``random.jsonl`` have the same number of pairs, so the same run on each shows the value of
the selection. The random draw depends only on the seed and the pairs.

Trade-off: the likelihoods of all pairs are held in memory for the quantiles, 16 bytes each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.corpus import Example
from armillary.model import Transformer, import_hf
from armillary.post.dpo import render_pair
from armillary.post.formats import AnswerPair, read_pairs
from armillary.post.joins import lines_of, write_lines
from armillary.post.stage import ITEMS, Keys, Stage, StageSpec, open_stage
from armillary.post.template import open_renderer
from armillary.post.tuning import digest, digest_model
from armillary.recipe import UsageError
from armillary.train import answer_log_probs, default_device

GROUP = 128  # pairs scored per call

Progress = Callable[[str, float, float, str], None]


@dataclass(frozen=True)
class Selection:
    """Quantiles over all pairs, from 0 to 1: the ``chosen`` answer lies between these two, the rejected one at or above
    ``rejected``. ``seed`` seeds the random selection.

    Raises:
        UsageError: a value outside its range.
    """

    chosen: tuple[float, float] = (0.2, 0.9)
    rejected: float = 0.5
    seed: int = 0
    template: str | None = None

    def __post_init__(self) -> None:
        low, high = self.chosen
        if not 0 <= low < high <= 1:
            raise UsageError(f"chosen: must be two increasing quantiles between 0 and 1, given {low:g} and {high:g}")
        if not 0 <= self.rejected < 1:
            raise UsageError(f"rejected: must be a quantile from 0 to below 1, given {self.rejected:g}")


@dataclass(frozen=True)
class Selected:
    """The result of a selection: both files, and the counts of the record with thresholds in nats per token."""

    selected: Path
    random: Path
    counts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"selected": str(self.selected), "random": str(self.random), "counts": self.counts}


def select_pairs(
    pairs: Path, model: Path, out: Path, selection: Selection = Selection(), progress: Progress = lambda *_: None
) -> Selected:
    """Select from the file ``pairs`` by likelihoods under the model in the folder ``model``.

    After a kill, the next call resumes and scores no pair twice. Duplicate pairs count once.

    Raises:
        UsageError: a wrong line, no pair that meets both conditions, or ``out`` holds something else.
        DamagedFileError, ForeignFileError, ArmillaryError: as ``open_stage``.
    """
    settings = {**asdict(selection), "model": digest_model(model)}
    with open_stage(out, StageSpec("select", settings, {"pairs": pairs})) as stage:
        if stage.record is not None and _whole(out, stage.record["counts"]["sha256"]):
            return _found(out, stage.record["counts"])
        if not stage.finished:
            _score(stage, pairs, model, selection, progress)
        counts = _select(out, pairs, selection)
        scored = f"data:{digest(out / ITEMS)}"
        hows = {"selected": "selected from", "random": "drawn at random from"}
        edges = [(f"data:{made}", hows[name], scored) for name, made in counts["sha256"].items()]
        edges.append((scored, "scored by", f"model:{settings['model']}"))
        record = stage.finish(counts, edges)
    return _found(out, record["counts"])


def _select(out: Path, pairs: Path, selection: Selection) -> dict[str, Any]:
    """Write both selections of the scored pairs; return their entries for the record."""
    chosen, rejected = _likelihoods(out).T
    low, high = np.quantile(chosen, selection.chosen)
    least = np.quantile(rejected, selection.rejected)
    kept = (chosen >= low) & (chosen <= high) & (rejected >= least)
    if not kept.any():
        raise UsageError(
            f"{pairs}: of {len(kept)} pairs, none has its chosen answer at {low:.3f} to {high:.3f} nats per token "
            f"and its rejected one at {least:.3f} or above; widen the chosen quantiles, or lower --rejected-from"
        )
    drawn = _drawn(out, selection.seed, int(kept.sum()))
    for name, which in (("selected", kept), ("random", drawn)):
        write_lines(out / f"{name}.jsonl", itertools.compress(lines_of(out / ITEMS), which))
    means = {
        name: {"chosen": float(chosen[which].mean()), "rejected": float(rejected[which].mean())}
        for name, which in (("all", np.ones_like(kept)), ("selected", kept), ("random", drawn))
    }
    return {
        "selected": int(kept.sum()),
        "in_both": int((kept & drawn).sum()),
        "bounds": {"chosen_from": float(low), "chosen_to": float(high), "rejected_from": float(least)},
        "means": means,
        "sha256": {name: digest(out / f"{name}.jsonl") for name in ("selected", "random")},
    }


def _whole(out: Path, recorded: dict[str, str]) -> bool:
    """Whether both selections are unchanged; otherwise they are written again."""
    return all(
        (out / f"{name}.jsonl").exists() and digest(out / f"{name}.jsonl") == recorded[name] for name in recorded
    )


def _found(out: Path, counts: dict[str, Any]) -> Selected:
    return Selected(out / "selected.jsonl", out / "random.jsonl", counts)


def _score(stage: Stage, pairs: Path, model: Path, selection: Selection, progress: Progress) -> None:
    """Decide every open pair: keep it with its likelihoods, or drop it if it cannot be rendered."""
    renderer = open_renderer(model, selection.template)
    loaded: list[Transformer] = []
    waiting = (pair for pair in _once(pairs) if not stage.decided(pair[0]))
    while group := list(itertools.islice(waiting, GROUP)):
        if not loaded:
            loaded.append(import_hf(model).to(default_device()))
        vocab_size = loaded[0].shape.vocab_size
        sides: list[tuple[Example, Example]] = [render_pair(renderer, pair, vocab_size) for _, pair in group]
        scores = answer_log_probs(loaded[0], itertools.chain.from_iterable(sides))
        for (name, pair), both in zip(group, sides, strict=True):
            means = [next(scores) / sum(side.weights[1:]) for side in both]
            notes = {"base": {"chosen": means[0], "rejected": means[1]}}
            stage.keep_rows(name, [{"id": name, **_plain(pair), "notes": notes}])
        progress("select", stage.decisions, stage.decisions, f"{stage.decisions} pairs scored")


def _once(path: Path) -> Iterator[tuple[str, AnswerPair]]:
    """The distinct pairs of a file, by the hash of their content."""
    seen = Keys()
    for pair in read_pairs(path):
        text = json.dumps(_plain(pair), ensure_ascii=False, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        if key not in seen:
            seen.add(key)
            yield key, pair


def _plain(pair: AnswerPair) -> dict[str, Any]:
    return {name: [dict(turn) for turn in getattr(pair, name)] for name in ("prompt", "chosen", "rejected")}


def _lines(out: Path) -> Iterator[dict[str, Any]]:
    with open(out / ITEMS, "rb") as file:
        yield from map(json.loads, file)


def _likelihoods(out: Path) -> NDArray[np.float64]:
    """Mean log-probabilities per token of the chosen and the rejected answers [pairs, 2]."""
    values = (row["notes"]["base"] for row in _lines(out))
    both = itertools.chain.from_iterable((value["chosen"], value["rejected"]) for value in values)
    return np.fromiter(both, dtype=np.float64).reshape(-1, 2)


def _drawn(out: Path, seed: int, count: int) -> NDArray[np.bool_]:
    """The ``count`` pairs that the seed draws: those whose ids have the smallest hashes."""
    hashes = (hashlib.sha256(f"{seed} {row['id']}".encode()).digest()[:8] for row in _lines(out))
    keys = np.fromiter((int.from_bytes(key) for key in hashes), dtype=np.uint64)
    drawn = np.zeros(len(keys), dtype=np.bool_)
    drawn[np.argsort(keys, kind="stable")[:count]] = True
    return drawn
