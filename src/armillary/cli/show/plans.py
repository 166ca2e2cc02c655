"""Shows a plan: the best layout with the parts of its step and its memory, and why the next ones lose."""

from __future__ import annotations

from typing import Any

from armillary.cli.show.screen import out, show_table
from armillary.recipe import counted


def show_plan(plan: dict[str, Any]) -> None:
    """Print ``Plan.to_json``."""
    best, cost, cluster = plan["best"], plan["cost"], plan["cluster"]
    memory = best["memory_gb"]
    out.print(
        f"{counted(plan['parameters'], 'parameter')} on {cluster['accelerators']:,} x {cluster['accelerator']}, "
        f"{cluster['precision']}, {cluster['software']}\n"
        f"best layout: {_layout(best['layout'])}\n"
        f"step {best['step_time_s']:.3g} s (90 %: {best['step_time_low_s']:.3g} to {best['step_time_high_s']:.3g}), "
        f"{best['tokens_per_s_per_accelerator']:,.0f} tokens/s per accelerator, MFU {100 * best['mfu']:.1f} %, "
        f"memory {memory['total']:.1f} GB (upper end {memory['upper_end']:.1f})",
        highlight=False,
    )
    total = best["step_time_s"]
    show_table(
        "step time by part",
        ["part", "seconds", "share"],
        [
            [name.replace("_", " "), f"{seconds:.4g}", f"{100 * seconds / total:.1f} %"]
            for name, seconds in best["parts_s"].items()
            if seconds > 0
        ],
    )
    kinds = [name for name in memory if name not in ("total", "upper_end")]
    show_table(
        "memory of the rank that needs the most",
        ["kind", "GB"],
        [[name, f"{memory[name]:.2f}"] for name in kinds if memory[name] > 0],
    )
    show_table(
        f"next best of {plan['tried']} layouts",
        ["layout", "step", "memory, upper end", "slower by"],
        [
            [
                _layout(one["layout"]),
                f"{one['step_time_s']:.4g} s",
                f"{one['memory_gb']['upper_end']:.1f} GB",
                one["loses_by"],
            ]
            for one in plan["others"]
        ],
    )
    money = "" if cost["money"] is None else f", {cost['money']:,.0f} {cost['currency']}"
    out.print(
        f"the run of {cost['tokens']:.3g} tokens: {cost['steps']:,} steps, {cost['hours']:,.1f} h at a goodput of "
        f"{100 * cost['goodput']:.2f} %, {cost['accelerator_hours']:,.0f} accelerator hours, "
        f"{cost['energy_mwh']:,.3g} MWh{money}",
        highlight=False,
    )


def _layout(layout: dict[str, Any]) -> str:
    sizes = [f"{name} {layout[name]}" for name in ("tp", "pp", "cp", "ep", "dp") if layout[name] > 1]
    if layout["stages"] > 1:
        sizes.append(f"virtual stages {layout['stages']}")
    sizes += [f"micro-batch {layout['micro_batch']}", f"ZeRO {layout['zero']}"]
    if layout["recompute"] != "none":
        sizes.append(f"recompute {layout['recompute']}")
    if layout["layers_per_stage"]:
        sizes.append("layers " + "-".join(map(str, layout["layers_per_stage"])))
    return ", ".join(sizes)
