"""Prints the outcomes of studies, predictions and runs."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from armillary.cli.show.screen import out, show_table

_DECISIONS = {"mixture": "mixture", "anneal": "annealing", "lr": "peak learning rate"}
_STOPPED = {
    "inside": "the best option lies inside the tried range",
    "limits": "the best option lies at a limit",
    "reserve": "the best option is still at the edge of the tried range, and the reserve is spent",
}


def show_mixture(found: Any) -> None:
    """Print the chosen mixture next to the plain ones, and the measurements of the law's candidates."""
    rows = [
        [d, found.natural[d], found.uniform[d], found.found[d]]
        for d in sorted(found.training_domains, key=lambda d: -found.found[d])
    ]
    show_table(f"mixture chosen: {found.taken}", ["domain", "natural", "uniform", "chosen"], rows)
    rows = [
        [c.name, c.predicted, sum(c.measured) / len(c.measured) if c.measured else None, len(c.measured)]
        for c in found.candidates
    ]
    show_table("target loss (nats per token)", ["mixture", "law", "new seeds", "seeds"], rows)
    out.print(
        f"best candidate minus {found.reference}: {found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), "
        f"{'significant' if found.significant else 'not significant: the natural mixture is used'}"
        if not found.reason
        else found.reason,
        highlight=False,
    )
    _show_phases(found)
    _show_stopped(found)


def _show_phases(found: Any) -> None:
    """Print the best candidate of two phases, with the values within one standard error of it."""
    best = found.candidates[0]
    if found.flat is None or best.annealing is None:
        return
    late = dict(best.annealing.weights) or best.weights

    def cell(value: float, ends: tuple[float, float]) -> str:
        return f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"

    rows = [
        [name, cell(best.weights[name], found.flat.stable[name]), cell(late[name], found.flat.annealing[name])]
        for name in found.training_domains
    ]
    rows.append(["share of the decay", "", cell(best.annealing.share, found.flat.share)])
    title = f"best candidate of two phases, and all within {found.flat.error:.4f} nats per token of it"
    show_table(title, ["domain", "stable phase", "annealing"], rows)


def _show_stopped(found: Any) -> None:
    """Print where the best option lies; an outcome of an earlier version does not say it."""
    if found.stopped:
        out.print(_STOPPED[found.stopped], highlight=False)


def show_power(found: Any) -> None:
    """Print noise, signal and the smallest difference found for every metric, best ratio first."""
    columns = ["metric", "mean", "noise", "90 % interval", "paired", "signal", "signal/paired", "detectable"]
    rows = [
        [
            m.name,
            m.mean,
            m.noise,
            f"{m.noise_low:.4f} to {m.noise_high:.4f}",
            m.paired,
            m.signal,
            f"{m.ratio:.3g}",
            m.detectable,
        ]
        + ([] if found.difference is None else [m.seeds if m.seeds is not None else "over 10,000"])
        for m in found.metrics
    ]
    if found.difference is not None:
        columns.append(f"seeds for {found.difference:g}")
    show_table(f"metrics (nats per token); signal over {found.mixtures} mixtures", columns, rows)
    out.print(
        f"detectable: found with a chance of {found.chance:.0%} by {found.seeds} seeds of {found.arms} mixtures",
        highlight=False,
    )
    columns = ["choice", "options", "seeds", "detectable"]
    decisions: list[list[Any]] = [[_DECISIONS[d.of], d.arms, d.seeds, d.detectable] for d in found.decisions]
    if found.difference is not None:
        columns.append(f"seeds for {found.difference:g}")
        for row, d in zip(decisions, found.decisions, strict=True):
            row.append(d.needed if d.needed is not None else "over 10,000")
    show_table("choices by the target loss (nats per token)", columns, decisions)


def show_anneal(found: Any) -> None:
    """Print the target loss of every annealing by seed; an arrow marks the chosen one."""
    rows = [
        ["→ " * (b.annealing == found.taken) + b.annealing.name, *(b.losses.get(run) for run in b.runs)]
        for b in found.branches
    ]
    if found.reason:
        out.print(found.reason, highlight=False)
    columns = ["annealing", *[f"seed {i + 1}" for i in range(max(len(b.runs) for b in found.branches))]]
    show_table("target loss by annealing (nats per token)", columns, rows)
    out.print(
        f"best ({found.best}) minus {found.reference}: "
        f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), "
        f"{'significant' if found.significant else f'not significant: {found.reference} is used'}"
    )
    _show_stopped(found)


def show_lr(found: Any) -> None:
    """Print the target loss by rate and size, the law's rates, and the comparison with the rule."""
    cells = list(dict.fromkeys((p.depth, p.tokens) for p in found.points))
    losses = {(p.depth, p.tokens, p.multiple): p.target for p in found.points}
    rows = [
        [f"{multiple:.3g}", *(losses.get((*cell, multiple)) for cell in cells)]
        for multiple in sorted({p.multiple for p in found.points})
    ]
    columns = ["times the rule", *(f"depth {depth}, {tokens:,} tokens" for depth, tokens in cells)]
    show_table("target loss by peak learning rate (nats per token)", columns, rows)
    rows = [
        [
            f"{s.of} {s.depth}",
            s.parameters,
            s.tokens,
            f"{s.rule:.3g}",
            f"{s.lr:.3g}",
            f"{s.best:.3g} ({s.low:.2g} to {s.high:.2g})",
            f"{s.flat[0]:.2g} to {s.flat[1]:.2g}",
            f"{s.gain:+.2%} ({s.gain_low:+.2%} to {s.gain_high:+.2%})",
            f"{s.probability:.0%}",
        ]
        for s in found.sizes
    ]
    show_table(
        "peak learning rate by the law",
        [
            "depth",
            "parameters",
            "tokens",
            "rule",
            "tuned",
            "best (90%)",
            "within 0.1%",
            "the rule costs",
            "probability",
        ],
        rows,
    )
    for text in found.warnings:
        out.print(text, highlight=False)
    out.print(
        found.reason
        or f"tuned minus rule: {found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), "
        f"{'significant: the tuned rates are used' if found.significant else 'not significant: the rule is used'}",
        highlight=False,
    )


def show_ladder(found: Any) -> None:
    """Print the points of the ladder."""
    rows = [[p.family, p.depth, p.parameters, p.tokens, p.target] for p in found.points]
    show_table("ladder", ["family", "depth", "parameters", "tokens", "target loss"], rows)


def show_prediction(prediction: dict[str, Any]) -> None:
    """Print the recorded prediction of the target run."""
    domains = (
        prediction["domains"]
        if prediction["target"] is None
        else {**prediction["domains"], "target": prediction["target"]}
    )
    rows = [[d, v["predicted"], v["low"], v["high"]] for d, v in domains.items()]
    show_table(
        f"prediction of run {prediction['run']}, recorded {prediction['recorded_at']}",
        ["domain", "predicted", f"low ({prediction['interval']:.0%})", "high"],
        rows,
    )
    out.print(f"extrapolated to {prediction['extrapolation']:.1f} times the compute of the ladder")
    if "unpredicted" in prediction:
        out.print(prediction["unpredicted"])


def show_arms(found: Any) -> None:
    """Print the arms of the target run and their differences."""
    rows = [[a.name, a.mean, a.low, a.high, len(a.target)] for a in found.arms]
    show_table("target loss (nats per token)", ["mixture", "mean", "low (90%)", "high", "seeds"], rows)
    for d in found.differences:
        word = "better" if d.high < 0 else "worse" if d.low > 0 else "no significant difference"
        out.print(f"found minus {d.reference}: {d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f}): {word}")


def show_verdict(verdict: dict[str, Any]) -> None:
    """Print the verdict: predicted, interval, measured, inside or not."""
    rows = [
        [r["domain"], r["predicted"], r["low"], r["high"], r["measured"], "yes" if r["inside"] else "no"]
        for r in verdict["rows"]
    ]
    if "reason" in verdict:
        out.print(f"verdict on run {verdict['run']}, {verdict['status']}: {escape(verdict['reason'])}", highlight=False)
    if rows:
        show_table(
            f"verdict on run {verdict['run']}", ["domain", "predicted", "low", "high", "measured", "inside"], rows
        )
    if "unpredicted" in verdict:
        late = verdict["unpredicted"]
        out.print(f"target loss measured: {late['measured']:.4f}; {late['reason']}", highlight=False)


def show_result(result: Any) -> None:
    """Print the result of a large run."""
    rows = [[domain, loss, result.bits_per_byte[domain]] for domain, loss in result.loss.items()]
    show_table(
        f"run {result.run}: {result.tokens:,} tokens", ["domain", "loss (nats per token)", "bits per byte"], rows
    )
