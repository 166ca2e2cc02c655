"""The verbs of goodput: where the time of a run went, a cluster that fails, and what a goal needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import out, show_json, show_table
from armillary.cli.values import not_negative, positive, probability
from armillary.recipe import counted

goodput = typer.Typer(no_args_is_help=True, help="Where the time of a run went, and the goodput that a cluster allows.")
app.add_typer(goodput, name="goodput")

Accelerators = Annotated[int, typer.Option(min=1, help="Accelerators of the job.", show_default=False)]
Mtbf = Annotated[
    float,
    typer.Option(callback=positive, help="Mean hours between failures of one accelerator, including its share of node, "
                 "network and software failures.", show_default=False),
]  # fmt: skip


@goodput.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a file of events.", show_default=False)],
    svg: Annotated[Path | None, typer.Option(help="SVG file for the timeline.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the time of a run went, even while it is running.

    Example: armillary goodput report demo/store/runs/0123456789abcdef --svg timeline.svg
    """
    from armillary.goodput import ACCOUNTS, DEFINITION, read_ledger

    found = read_ledger(run)
    if svg is not None:
        from armillary.report.timeline import write_timeline

        write_timeline(svg, found)
    if as_json:
        return show_json(found.to_json())
    share = {account: value / found.elapsed_s if found.elapsed_s else 0.0 for account, value in found.seconds.items()}
    where = counted(found.ranks, "rank")
    if found.accelerators is not None:  # a simulated cluster writes one file for all its accelerators
        where = f"{counted(found.accelerators, 'accelerator')}, simulated"
    show_table(
        f"{run}: {_duration(found.elapsed_s)} on {where}",
        ["account", "time", "share"],
        [
            [account.replace("_", " "), _duration(found.seconds[account]), f"{100 * share[account]:.2f} %"]
            for account in ACCOUNTS
            if found.seconds[account] > 0
        ],
    )
    out.print(
        f"goodput {_percent(found.goodput)}, effective training time {_percent(found.effective)}; "
        f"{found.faults} faults, {found.restarts} restarts, {found.replayed_steps} steps replayed, "
        f"{found.skipped_batches} batches skipped",
        highlight=False,
    )
    for name, values in (("detected", found.detection_s), ("recovered", found.recovery_s)):
        if values:
            ordered = sorted(values)
            median = ordered[len(ordered) // 2]
            out.print(f"{name} after {median:.2f} s (median of {len(values)}), at most {ordered[-1]:.2f} s")
    out.print(DEFINITION, style="dim", highlight=False)


@goodput.command("simulate")
def simulate(
    out_file: Annotated[Path, typer.Option("--out", help="File of events to write.", show_default=False)],
    accelerators: Annotated[int | None, typer.Option(min=1, help="Accelerators of the job.")] = None,
    mtbf_accelerator_hours: Annotated[
        float | None, typer.Option(callback=positive, help="Mean hours between failures of one accelerator.")
    ] = None,
    checkpoint_block_s: Annotated[
        float | None, typer.Option(callback=not_negative, help="Seconds that training waits for a checkpoint.")
    ] = None,
    checkpoint_interval_s: Annotated[
        str, typer.Option(help="Seconds of steps between two checkpoints, or `best`.")
    ] = "best",
    recovery_s: Annotated[
        float | None, typer.Option(callback=not_negative, help="Seconds from a failure until training continues.")
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(help="YAML file with causes, repair, spares, tiers, lemons, stragglers.", show_default=False),
    ] = None,
    days: Annotated[float, typer.Option(callback=positive, help="Days to simulate.")] = 90.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the failures.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Simulate a job on a cluster that fails, into a file of events that `goodput report` reads.

    Example: armillary goodput simulate --accelerators 10240 --mtbf-accelerator-hours 50000 --checkpoint-block-s 2
    --recovery-s 300 --days 90 --out events.jsonl
    """
    from armillary.goodput import cluster_of, run_simulation

    chosen = cluster_of(
        cluster, accelerators, mtbf_accelerator_hours, checkpoint_block_s, checkpoint_interval_s, recovery_s
    )
    found = run_simulation(chosen, days, seed, out_file)
    if as_json:
        return show_json(found)
    out.print(
        f"{out_file}: {counted(found['faults'], 'failure')} in {days:g} day{'' if days == 1 else 's'}, "
        f"goodput {_percent(found['goodput'])}"
        + (f" (exact formula {_percent(found['formula'])})" if found["formula"] is not None else "")
        + f"; checkpoint every {found['checkpoint_interval_s']:.0f} s",
        highlight=False,
    )


@goodput.command("limits")
def limits(
    accelerators: Accelerators,
    mtbf_accelerator_hours: Mtbf,
    goal: Annotated[float, typer.Option(callback=probability, help="Goodput to reach.")] = 0.98,
    recovery_s: Annotated[
        list[float] | None,
        typer.Option(min=0, help="Recovery time to show, in seconds; repeatable (default: fractions of the longest)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how short recovery and checkpoints must be for a goal, such as 98 %.

    Example: armillary goodput limits --accelerators 10240 --mtbf-accelerator-hours 50000 --goal 0.98
    """
    from armillary.goodput import limits_of

    found = limits_of(accelerators, mtbf_accelerator_hours, goal, recovery_s or ())
    if as_json:
        return show_json(found)
    show_table(
        f"goodput {100 * goal:g} % on {accelerators:,} accelerators: a failure every {_duration(found['mtbf_job_s'])}",
        ["recovery", "checkpoint may block", "best interval"],
        [[_duration(row["recovery_s"]), "nothing", ""] if row["checkpoint_block_s"] is None else
         [_duration(row["recovery_s"]), _seconds(row["checkpoint_block_s"]), _duration(row["checkpoint_interval_s"])]
         for row in found["frontier"]],
    )  # fmt: skip
    out.print(f"recovery may take at most {_duration(found['largest_recovery_s'])}, even if checkpoints cost nothing")


@goodput.command("compare")
def compare(
    run: Annotated[Path, typer.Argument(help="Folder of a run with faults, or a file of events.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated failures.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare a run that had faults with the simulator and the exact formula. Exit status 1: over two points apart.

    Both use the measured times of the run: between faults, to recover, and blocked by checkpoints.

    Example: armillary goodput compare checkpoints/broken --json
    """
    from armillary.goodput import ALLOWED
    from armillary.goodput import compare as compare_run

    found = compare_run(run, seed)
    measured = found["measured"]
    if as_json:
        show_json(found)
    else:
        shares = [f"{100 * found[name]:.1f} %" for name in ("goodput", "simulated", "formula")]
        title = f"{run}: goodput without start, compile, validations and pauses"
        show_table(title, ["measured", "simulated", "formula"], [shares])
        times = (
            f"a step takes {measured['step_s']:.2f} s, a checkpoint comes after {measured['checkpoint_interval_s']:.1f}"
        )
        out.print(
            f"{counted(measured['faults'], 'fault')}, one every {_duration(measured['mtbf_s'])}; {times} s and blocks "
            f"{measured['checkpoint_block_s']:.3f} s, a recovery takes {measured['recovery_s']:.1f} s",
            highlight=False,
        )
    if abs(found["goodput"] - found["simulated"]) > ALLOWED:
        raise typer.Exit(1)


def _percent(share: Any) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else _duration(value)


def _duration(seconds: float) -> str:
    for unit, name in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
