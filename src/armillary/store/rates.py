"""Rates of training that were measured, one for each machine and kind of run."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from armillary.store import schema
from armillary.store.base import Base, iso_time


class Rates(Base):
    """Rates of a store: the newest of its kind takes the place of the one before."""

    def rates(self, **where: str | int) -> list[dict[str, Any]]:
        """Rates that were measured, those whose columns have the given values: a row of the table each.

        ``machine`` and ``shape`` are hashes of what stands in ``about``; ``how`` is ``probe`` or ``runs``;
        ``tokens_per_s`` is that of all workers together, ``seconds`` how long it was measured.
        """
        query = sa.select(schema.rates).filter_by(**where).order_by(schema.rates.c.recorded_at)
        with self.database.reading() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def rates_overview(self) -> list[dict[str, Any]]:
        """Rates as a person reads them: device, workers, the model's layers and width, tokens per second, when."""
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
        """Keep a rate in place of the one that was known for ``key`` (machine to how)."""
        with self.database.writing() as db:
            if not db.execute(sa.update(schema.rates).filter_by(**key).values(**values)).rowcount:
                db.execute(sa.insert(schema.rates).values(**key, **values))
