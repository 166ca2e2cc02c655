"""Studies: their progress, and the outcome of each stage, with the law against its measurements.

Outcomes are read as they were recorded, field by field, since the classes that wrote them import torch. What an older
version did not record is left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from armillary.console import svg
from armillary.console.app import Page, missing
from armillary.console.places import Place
from armillary.laws import ScalingLaw
from armillary.recipe import ArmillaryError
from armillary.report import format as fmt
from armillary.store import Outcome, RunFilter, StudyState

STAGES = ("mixture", "anneal", "lr", "ladder", "target")
_SHOWN = 12  # outcomes of a store on the first page
_RUNS = 60
_OPEN = ("pending", "running")


def studies(page: Page) -> dict[str, Any]:
    """All studies with their progress, and the newest outcomes."""

    def read(place: Place) -> tuple[list[StudyState], list[tuple[Outcome, Any]]]:
        if place.reader is None:
            return [], []
        states = place.studies()
        outcomes = [one for one in place.reader.outcomes() if one.name in STAGES][:_SHOWN]
        return states, [(one, _brief(page, place, one)) for one in outcomes]

    found = list(page.watch.each(read, page.problems))
    rows = [(place, state, _left(place, state)) for place, (states, _) in found for state in states]
    return {
        "rows": rows,
        "outcomes": [(place, one, row) for place, (_, outcomes) in found for one, row in outcomes],
        "done": _done,
        "loose": [(place, place.counts()) for place in page.watch.places if place.reader is None and place.found.runs],
        "busy": any(state.runs.get("running") for _, state, _ in rows),
    }


def study(page: Page) -> dict[str, Any]:
    """One study: progress, its newest runs with their mixtures, and its outcomes."""
    place = page.watch.place(page.request.path_params["place"])
    name = page.fields.get("name", "")
    if place is None or place.reader is None:
        raise missing()
    state = next((one for one in place.studies() if one.study == name), None)
    if state is None:
        raise missing()
    runs = place.reader.page(RunFilter(study=name), _RUNS)
    domains = list(dict.fromkeys(domain for run in runs for domain in run.mixture))
    stage = name.removesuffix("-confirm")
    return {
        "place": place,
        "name": name,
        "state": state,
        "left": _left(place, state),
        "done": _done,
        "runs": runs,
        "domains": domains,
        "outcomes": [(one, _brief(page, place, one)) for one in place.reader.outcomes(stage)[:_SHOWN]],
        "losses": lambda run: ((run.result or {}).get("loss") or {}).values(),
        "busy": bool(state.runs.get("running")),
    }


def outcome(page: Page) -> dict[str, Any]:
    """The outcome of a stage."""
    path = page.request.path_params
    place = page.watch.place(path["place"])
    if place is None or place.reader is None:
        raise missing()
    name, key = path["name"], path["key"]
    content = place.reader.outcome(name, key)
    if content is None:
        raise missing()
    parts: dict[str, Any] = {}
    if isinstance(content, dict):
        try:
            by_stage = {"mixture": _mixture, "anneal": _anneal, "lr": _lr, "ladder": _ladder, "target": _target}
            parts = by_stage[name](page, content)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            parts = {}  # from another version, or edited: its content is shown unchanged
    recorded = next((one.recorded_at for one in place.reader.outcomes(name) if one.key == key), None)
    return {
        "place": place,
        "name": name,
        "key": key,
        "recorded_at": recorded,
        "failed": content.get("failed", []) if isinstance(content, dict) else [],
        "parts": dict.fromkeys(_PARTS) | parts,
        "content": content if not parts else None,
    }


_PARTS = (
    *(
        "choice",
        "rates",
        "rates_table",
        "found",
        "found_table",
        "design",
        "law",
        "candidates",
        "branches",
        "ladder",
        "points",
        "arms",
    ),
    *("differences", "reason", "stopped"),
)


def _mixture(page: Page, content: Mapping[str, Any]) -> dict[str, Any]:
    t, domains = page.words, content["training_domains"]
    taken = t.candidate(content["taken"])
    sets = [content["natural"], content["uniform"], content["found"]]
    names = [t.name("natural"), t.name("uniform"), t.name("found")]
    panels = []
    for column, domain in enumerate(content["domains"]):
        predicted = [row[column] for row in content["held_out"]]
        measured = [row[column] for row in content["losses"]]
        picture = svg.scatter(predicted, measured, t("predicted_axis"), t("measured_axis"))
        caption = t("spearman", value=fmt.rank(content["spearman"][column]), rmse=fmt.loss(content["rmse"][column]))
        panels.append((domain, caption, picture))
    rows = [
        svg.Row(
            t.candidate(one["name"]),
            one["low"],
            one["high"],
            one["predicted"],
            one["measured"],
            marked=one["name"] == content["taken"],
        )
        for one in content["candidates"]
    ]
    runs, losses = content.get("runs", []), content["losses"]
    return {
        "choice": _choice(page, content, taken, t.candidate(content["reference"])),
        "reason": content.get("reason", ""),
        "stopped": _stopped(page, content),
        "found": svg.bars([(d, [weights.get(d, 0.0) for weights in sets]) for d in domains], names, fmt.percent),
        "found_table": names,
        "law": panels,
        "candidates": svg.intervals(rows, t("target_loss"), fmt.loss),
        "design": {
            "domains": domains,
            "losses": content["domains"],
            "rows": [
                (runs[n] if n < len(runs) else "", weights, losses[n] if n < len(losses) else [])
                for n, weights in enumerate(content["design"])
            ],
        },
    }


def _annealing(page: Page, one: Mapping[str, Any]) -> str:
    """The label of an annealing."""
    t = page.words
    own = bool(one.get("weights"))
    power = "" if one.get("sharpen", 1.0) == 1 and not own else f", {t.mixture(one.get('sharpen', 1.0), own)}"
    return f"{fmt.share(one['share'])} {t.name(one['shape'])}{power}"


def _anneal(page: Page, content: Mapping[str, Any]) -> dict[str, Any]:
    t, taken = page.words, content["taken"]
    rows = [
        svg.Row(
            _annealing(page, branch["annealing"]),
            middle=fmean(branch["measured"]) if branch["measured"] else None,
            points=branch["measured"],
            marked=branch["annealing"] == taken,
        )
        for branch in content["branches"]
    ]
    return {
        "choice": _choice(page, content, _annealing(page, taken), content["reference"]),
        "reason": content.get("reason", ""),
        "stopped": _stopped(page, content),
        "branches": svg.intervals(rows, t("target_loss"), fmt.loss),
    }


def _lr(page: Page, content: Mapping[str, Any]) -> dict[str, Any]:
    t = page.words
    groups: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(content["points"], key=lambda point: (point["depth"], point["tokens"])):
        name = t("run_of", n=point["depth"], tokens=fmt.short(point["tokens"]))
        groups.setdefault(name, []).append((point["multiple"], point["target"]))
    picture = svg.dots(
        list(groups.items()), svg.Axis(t("times_rule"), log=True, form=fmt.general), svg.Axis(t("target_loss"))
    )
    rows = [
        svg.Row(t.name(arm["name"]), middle=fmean(arm["measured"]) if arm["measured"] else None, points=arm["measured"])
        for arm in content["confirm"]
    ]
    return {
        "choice": _choice(page, content, t.name(content["taken"]), t.name("rule")),
        "rates": picture,
        "rates_table": content["sizes"],
        "found_table": list(groups),
        "branches": svg.intervals(rows, t("target_loss"), fmt.loss) if rows else None,
    }


def _ladder(page: Page, content: Mapping[str, Any]) -> dict[str, Any]:
    t, points = page.words, content["points"]
    groups: dict[str, list[tuple[float, float]]] = {}
    families = list(dict.fromkeys(point["family"] for point in points))
    for point in points:
        family = f"{point['family']}, " if len(families) > 1 else ""
        groups.setdefault(family + t("depth", n=point["depth"]), []).append((point["flops"], point["target"]))
    picture = svg.dots(
        list(groups.items()), svg.Axis(t("compute"), log=True, form=fmt.power_short), svg.Axis(t("target_loss"))
    )
    laws = []
    for family in families:
        own = [point for point in points if point["family"] == family]
        law = _law_of(own)
        if law is None:
            continue
        mean = law
        panel = svg.scatter(mean, [point["target"] for point in own], t("predicted_axis"), t("measured_axis"))
        errors = [abs(a / point["target"] - 1) for a, point in zip(mean, own, strict=True)]
        laws.append((family, f"{t('ladder_law')}: ± {fmt.percent(fmean(errors))}", panel))
    return {
        "ladder": picture,
        "points": [
            (
                point["run"],
                point["family"],
                point["depth"],
                point["parameters"],
                point["tokens"],
                point["flops"],
                point["target"],
            )
            for point in points
        ],
        "found_table": list(groups),
        "law": laws,
    }


def _target(page: Page, content: Mapping[str, Any]) -> dict[str, Any]:
    t = page.words
    rows = [
        svg.Row(t.name(arm["name"]), arm.get("low"), arm.get("high"), arm["mean"], arm["target"], hue=hue)
        for hue, arm in enumerate(content["arms"])
    ]
    differences = [
        svg.Row(
            t("minus", arm=t.name("found"), reference=t.name(one["reference"])), one["low"], one["high"], one["mean"]
        )
        for one in content["differences"]
    ]
    return {
        "arms": svg.intervals(rows, t("target_loss"), fmt.loss),
        "differences": svg.intervals(differences, t("target_loss"), fmt.signed, zero=0.0),
        "points": [
            (run, t.name(arm["name"]), arm["seeds"][n], "", "", "", arm["target"][n])
            for arm in content["arms"]
            for n, run in enumerate(arm["runs"])
        ],
    }


_LAWS: dict[int, list[float] | None] = {}


def _law_of(points: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The value of the law of these points at each of them; None if it cannot be fitted."""
    sizes = np.array([[point["parameters"], point["tokens"]] for point in points], float)
    losses = np.array([point["target"] for point in points], float)
    key = hash((sizes.tobytes(), losses.tobytes()))
    if key not in _LAWS:
        if len(_LAWS) > 200:
            _LAWS.clear()
        try:
            _LAWS[key] = [float(value) for value in ScalingLaw().fit(sizes, losses).predict(sizes).mean]
        except (ArmillaryError, ValueError, ArithmeticError):
            _LAWS[key] = None
    return _LAWS[key]


def _choice(page: Page, content: Mapping[str, Any], taken: str, reference: str) -> Markup:
    difference = fmt.difference(content["difference"], content["low"], content["high"])
    if content.get("low") == content.get("high") == 0:
        return page.words.sentence("not_compared", taken=taken, reason=content.get("reason") or "")
    key = "chosen" if content["significant"] else "not_chosen"
    return page.words.sentence(key, taken=taken, reference=reference, difference=difference)


def _stopped(page: Page, content: Mapping[str, Any]) -> Markup:
    """The runs of the reserve, and where the best option lies; empty for an outcome of an earlier version."""
    t, further = page.words, sum(one["runs"] for one in content.get("rounds", []))
    parts: list[str] = [t.sentence("further_runs", runs=t.n("runs", further))] if further else []
    if content.get("stopped"):
        parts.append(t(f"stopped_{content['stopped']}"))
    return Markup(" ").join(parts)


def _brief(page: Page, place: Place, one: Outcome) -> str:
    """An outcome in one sentence."""
    assert place.reader is not None
    try:
        content: Any = place.reader.outcome(one.name, one.key)
    except ArmillaryError as error:
        return str(error)
    t = page.words
    try:
        if one.name == "mixture":
            return _choice(page, content, t.candidate(content["taken"]), t.candidate(content["reference"]))
        if one.name == "anneal":
            return _choice(page, content, _annealing(page, content["taken"]), content["reference"])
        if one.name == "lr":
            return _choice(page, content, t.name(content["taken"]), t.name("rule"))
        if one.name == "ladder":
            return t.n("runs", len(content["points"]))
        return "; ".join(f"{t.name(arm['name'])} {fmt.loss(arm['mean'])}" for arm in content["arms"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def _done(state: StudyState) -> tuple[int, int]:
    """The numbers of finished runs and of all runs."""
    every = sum(state.runs.values())
    return every - sum(state.runs.get(status, 0) for status in _OPEN), every


def _left(place: Place, state: StudyState) -> float | None:
    """Seconds until a study is done, at its speed so far; None if it is not running or the speed is unknown."""
    if not state.runs.get("running") or state.started_at is None or place.reader is None:
        return None
    work = place.reader.work(state.study)
    done, left = work.get("done", 0.0), sum(work.get(status) or 0.0 for status in _OPEN)
    # Running runs are half done on average.
    spent = done + 0.5 * (work.get("running") or 0.0)
    seconds = time.time() - state.started_at
    return None if not done else seconds * max(0.0, left - 0.5 * (work.get("running") or 0.0)) / spent
