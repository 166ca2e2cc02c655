"""What lists and filters show of a run, kept beside its specification so that 100,000 runs need not be parsed."""

from __future__ import annotations

import contextlib
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from armillary.recipe import RunSpec
from armillary.store import schema
from armillary.store.database import Database

_BATCH = 1000  # rows of a transaction that completes an older store


def facts_of(spec: RunSpec) -> dict[str, Any]:
    """The row of ``run_facts`` without its run.

    ``shape`` is layers x width, as in ``4x256``; ``mixture`` the weights of the first phase. ``tags`` are words that
    distinguish runs of one shape: optimizer, schedule, precision, objective, seed, ``adapter`` and ``continued``.
    """
    tags = [spec.optimizer.kind, spec.schedule.kind, spec.precision, spec.objective.kind, f"seed-{spec.seed}"]
    tags += ["adapter"] * (spec.adapter is not None) + ["continued"] * (spec.start is not None)
    return {
        "shape": f"{spec.model.n_layers}x{spec.model.d_model}",
        "parameters": spec.model.parameters,
        "tokens": spec.tokens,
        "flops": spec.flops,
        "mixture": dict(spec.mixture[0].weights) if spec.mixture else {},
        "tags": f" {' '.join(tags)} ",
    }


def complete(database: Database) -> None:
    """Add the facts of runs that an older version has added; a damaged specification is left to its readers."""
    runs, facts = schema.runs, schema.run_facts
    with database.reading() as db:
        counts = [db.execute(sa.select(sa.func.count()).select_from(table)).scalar() for table in (runs, facts)]
    last = "" if counts[0] != counts[1] else None
    while last is not None:
        with database.writing() as db:
            lacking = runs.c.id.not_in(sa.select(facts.c.run))
            query = sa.select(runs.c.id, runs.c.spec).where(lacking, runs.c.id > last).order_by(runs.c.id)
            rows = db.execute(query.limit(_BATCH)).all()
            values = []
            for row in rows:
                with contextlib.suppress(ValidationError):
                    values.append({"run": row.id, **facts_of(RunSpec.model_validate(row.spec))})
            if values:
                db.execute(sa.insert(facts), values)
        last = rows[-1].id if rows else None
