"""Prints the result of a dry run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from armillary.cli.show.screen import out, show_table
from armillary.recipe import counted

_GIB = 2**30
_KINDS = ("parameters", "gradients", "optimizer", "gathered", "activations")
_CHANGING = ("gradients", "gathered", "activations")


def show_dry_run(name: str, found: Any) -> None:
    """Print the memory of each distinct rank and phase, and the collectives of the largest rank."""
    phases: dict[int, list[Any]] = {}
    for report in found.reports:
        phases.setdefault(report.first_step, []).append(report)
    rows = [
        [
            _place(report),
            _layers(report.layers),
            f"{report.numbers:,}",
            *(_gib(part) for part in (report.parameters, report.gradients, report.optimizer)),
        ]
        for report in phases[min(phases)]
    ]
    show_table(
        f"{name}: {counted(found.parameters, 'parameter')} on {counted(found.ranks, 'rank')}; held on each rank (GiB)",
        ["rank", "layers", "numbers", "parameters", "gradients", "optimizer"],
        rows,
    )
    for first, reports in phases.items():
        show_table(
            f"from step {first} on, {_step(reports[0])}: memory at the peak of a step, and the maximum of each kind at "
            "any time (GiB)",
            ["rank", "peak", *_KINDS, *(f"max {kind}" for kind in _KINDS if kind in _CHANGING)],
            [
                [
                    _place(report) + " ←" * (report is found.largest and len(found.reports) > 1),
                    _gib(report.peak),
                    *(_gib(report.at_peak[kind]) for kind in _KINDS),
                    *(_gib(report.most[kind]) for kind in _KINDS if kind in _CHANGING),
                ]
                for report in reports
            ],
        )
    if len(phases) > 1:
        out.print(
            f"peak over all phases: {_gib(found.peak)} GiB on rank {found.largest.rank}, from step "
            f"{found.largest.first_step} on ({_step(found.largest)})",
            highlight=False,
        )
    rows = [
        [c.kind, c.group, c.ranks, c.count, _megabytes(c.nbytes), _gib(c.count * c.nbytes)]
        for c in sorted(found.largest.collectives, key=lambda c: -c.count * c.nbytes)
    ]
    show_table(
        f"collectives of one step on rank {found.largest.rank}, {_step(found.largest)}",
        ["kind", "over", "ranks", "times", "MiB each", "GiB in total"],
        rows,
    )
    sums: Counter[str] = Counter()
    for c in found.largest.collectives:
        sums[c.kind] += c.count * c.nbytes
    listed = ", ".join(f"{kind} {_gib(nbytes)}" for kind, nbytes in sums.most_common())
    out.print(f"GiB in total: {listed}", highlight=False)
    out.print(f"computed in {found.seconds:.0f} s and {_gib(found.own_memory)} GiB", highlight=False)


def _step(report: Any) -> str:
    """The size of a step in this phase."""
    return (
        f"{counted(report.batch_sequences, 'sequence')} of {counted(report.context_length, 'token')} a step in "
        f"{counted(report.microbatches, 'micro-batch')}"
    )


def _place(report: Any) -> str:
    place = " ".join(f"{name} {index}" for name, index in report.place.items() if index)
    return f"{report.rank} ({place})" if place else str(report.rank)


def _layers(stages: list[list[int]]) -> str:
    """Layers of each stage, such as 0-3, 32-35."""
    return ", ".join(f"{its[0]}-{its[-1]}" if len(its) > 1 else str(its[0]) for its in stages if its)


def _gib(nbytes: int) -> str:
    return f"{nbytes / _GIB:,.2f}" if nbytes >= _GIB or not nbytes else f"{nbytes / _GIB:.3g}"


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.2f}" if nbytes >= 2**14 else f"{nbytes / 2**20:.2g}"
