"""A post-training whose prediction of the gain is in a store: recorded before the run, judged after it (contract 4).

The store is the folder ``store`` of the post-training. The prediction belongs to the run of the first fine-tuning. The
store's journal numbers the prediction, the start of the run, its result and the verdict, and seals each with the entry
before (`store.chain`). So the order is proved by the journal, not stated by the program that predicted. The verdict and
these numbers are also in ``gain/verdict.json``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from armillary import __version__
from armillary.path.teach import FORMAT, HELD_OUT, RECORD, Step, teach
from armillary.post.tuning import Handling
from armillary.recipe import RunSpec, Teaching, read_result, read_sealed, write_sealed
from armillary.store import Store

STORE = "store"
STUDY = "gain"
VERDICT = Path("gain") / "verdict.json"
_LEFT_OUT = {"format", "sha256", "recorded_at", "before_the_run"}


def teach_and_judge(
    recipe: Teaching,
    out: Path,
    handling: Handling = Handling(),
    say: Callable[[str], None] = lambda text: None,
) -> list[Step]:
    """Run ``teach``; record the prediction of the gain before the run that it is about, and the verdict after it.

    Raises:
        ArmillaryError: another prediction of the run is recorded; or as ``teach``, and as ``Store``.
    """
    if recipe.gain is None:
        return teach(recipe, out, handling, say)
    with closing(Store(out / STORE)) as store:
        waiting: list[dict[str, Any]] = []

        def planned(spec: RunSpec) -> None:
            if waiting:  # of the first fine-tuning after the prediction
                _record(store, out, spec, waiting.pop())
            handling.planned(spec)

        steps = teach(recipe, out, replace(handling, planned=planned), say, waiting.append)
        _judge(store, out)
    return steps


def _record(store: Store, out: Path, spec: RunSpec, prediction: dict[str, Any]) -> None:
    """Record the prediction and then the start of the run; a run that has begun without a prediction gets none."""
    run, folder = spec.id, out / "sft" / "run"
    content = {name: value for name, value in prediction.items() if name not in _LEFT_OUT}
    content = {"what": "gain", "run": run, "set": HELD_OUT, **content, "version": __version__}
    known = store.prediction(run)
    if known is None and folder.exists():
        return
    if known is not None:
        content["version"] = known["version"]
    store.record_prediction(run, content)
    store.add(STUDY, [spec])
    if store.started_at(run) is None:
        store.mark_running(run)
    link = store.run_folder(run)
    if not os.path.lexists(link):
        link.symlink_to(os.path.relpath(folder, link.parent))


def _judge(store: Store, out: Path) -> None:
    """Record the result of the run and the verdict, and write both with the numbers of the journal."""
    record = read_sealed(out / RECORD, "record of a teaching", FORMAT, "run it again")
    result, gain = read_result(out / "sft" / "run"), record["gain"]
    assert result is not None
    run = result.run
    if store.prediction(run) is not None:
        store.mark_done(result)
        row = {name: gain.get(name) for name in ("predicted", "low", "high", "measured", "inside")}
        status = "unpredicted" if gain["inside"] is None else "judged"
        rows = [] if gain["inside"] is None else [{"domain": HELD_OUT, **row}]
        store.record_verdict(run, {"run": run, "status": status, "rows": rows, "inside": int(bool(gain["inside"]))})
    order, chain = store.order(run), store.chain()
    entries = {
        kind: entry.seq for kind in ("prediction", "start", "result", "verdict") if (entry := chain.of(kind, run))
    }
    document = {
        "run": run,
        "before_the_run": order is not None and order.start is not None and order.holds and chain.intact,
        "journal": entries,
        "head": chain.head,
        "problems": list(chain.problems),
        "inside": gain["inside"],
        "measured": gain["measured"],
    }
    write_sealed(out / VERDICT, {"format": FORMAT, **document})
