"""The lineage in a store: an edge from each artefact to the artefacts that it was made from (contract 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from armillary.recipe import DamagedFileError, Edge
from armillary.store import schema
from armillary.store.runs import Runs
from armillary.store.stages import Stages

_MOST_IDS = 500  # in one query


class Lineage(Runs, Stages):
    """Parents and edges of the runs of a store."""

    def parents(self, run: str) -> list[str]:
        """Ids of the runs whose weights a known run starts from.

        Raises:
            ArmillaryError: the run is unknown.
        """
        return self._parents_of(run, self._known(run).parents)

    def edges(self, runs: Iterable[str]) -> list[Edge]:
        """The lineage of ``runs`` as far as the store has it.

        A run leads to the runs and weights that it starts from, its corpus, its predictions and its examinations, and a
        prediction to the runs that its law was fitted to. A run that is not in the store is a node without edges.
        """
        examined = self.examinations()
        predicted: dict[str, list[tuple[str, list[str]]]] = {}
        with self.database.reading() as db:
            for key, content in db.execute(sa.select(schema.predictions.c.run, schema.predictions.c.content)):
                if isinstance(content, dict):  # otherwise it is damaged, which `chain` reports
                    about = (key, content.get("from_runs", []))
                    predicted.setdefault(content.get("run", key), []).append(about)
        edges: list[Edge] = []
        waiting, seen = list(runs), set()
        known: dict[str, Any] = {}
        while waiting:
            if waiting[0] in seen:
                waiting.pop(0)
                continue
            if waiting[0] not in known:  # all that wait, in as few queries as possible
                unseen = [run for run in waiting if run not in seen and run not in known]
                known.update({**dict.fromkeys(unseen), **self._specs_of(unseen)})
            run = waiting.pop(0)
            seen.add(run)
            if (row := known.pop(run)) is not None:
                spec, parents = self._spec_of(run, row.spec), self._parents_of(run, row.parents)
                edges += [Edge(f"run:{run}", "starts from", f"run:{parent}") for parent in parents]
                if spec.start is not None and not parents:
                    edges.append(Edge(f"run:{run}", "starts from", f"weights:{spec.start.sha256}"))
                edges.append(Edge(f"run:{run}", "trained on", f"corpus:{spec.corpus}"))
                waiting += parents
            edges += [Edge(f"run:{run}", "examined by", f"examination:{key}") for key, _ in examined.get(run, ())]
            for key, argued in predicted.get(run, ()):
                edges.append(Edge(f"run:{run}", "predicted by", f"prediction:{key}"))
                edges += [Edge(f"prediction:{key}", "argued by", f"run:{other}") for other in argued]
                waiting += argued
        return edges

    def _specs_of(self, runs: Iterable[str]) -> dict[str, Any]:
        """Rows with specification and parents of those of ``runs`` that are known."""
        wanted, found = list(dict.fromkeys(runs)), {}
        columns = (schema.runs.c.id, schema.runs.c.spec, schema.runs.c.parents)
        for first in range(0, len(wanted), _MOST_IDS):
            query = sa.select(*columns).where(schema.runs.c.id.in_(wanted[first : first + _MOST_IDS]))
            with self.database.reading() as db:
                found.update({row.id: row for row in db.execute(query)})
        return found

    def _parents_of(self, run: str, content: Any) -> list[str]:
        if content is not None and not (isinstance(content, list) and all(isinstance(one, str) for one in content)):
            raise DamagedFileError(
                f"{self.database.name}: the parents of run {run} are not a list of ids; restore it from a backup"
            )
        return content or []
