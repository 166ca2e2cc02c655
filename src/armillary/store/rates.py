"""Measured training rates, one per machine and kind of run."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from armillary.store import schema
from armillary.store.base import Base, iso_time


class Rates(Base):
    """Rates of a store: a new rate replaces the previous one of its kind."""

    def rates(self, **where: str | int) -> list[dict[str, Any]]:
        """The measured rates whose columns have the given values, as rows of the table.

        ``machine`` and ``shape`` are hashes of the content of ``about``; ``how`` is ``probe`` or ``runs``.
        ``tokens_per_s`` is the rate of all workers together, and ``seconds`` the duration of the measurement.
        """
        query = sa.select(schema.rates).filter_by(**where).order_by(schema.rates.c.recorded_at)
        with self.database.reading() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def rates_overview(self) -> list[dict[str, Any]]:
        """Rates for display: device, workers, the model's layers and width, tokens per second, and the time."""
        return [
            {
                "device": row["about"]["machine"]["device"],
                "workers": row["about"]["machine"]["workers"],
                "layers": row["about"]["model"]["n_layers"],
                "d_model": row["about"]["model"]["d_model"],
                "optimizer": row["about"].get("work", {}).get("optimizer", "adamw"),
                **{name: row[name] for name in ("context_length", "batch_sequences", "precision", "how")},
                "tokens_per_s": row["tokens_per_s"],
                "seconds": row["seconds"],
                "recorded_at": iso_time(row["recorded_at"]),
            }
            for row in self.rates()
        ]

    def record_rate(self, key: dict[str, str | int], **values: Any) -> None:
        """Record a rate, replacing an earlier one with the same ``key`` (the fields from machine to how)."""
        with self.database.writing() as db:
            if not db.execute(sa.update(schema.rates).filter_by(**key).values(**values)).rowcount:
                db.execute(sa.insert(schema.rates).values(**key, **values))
