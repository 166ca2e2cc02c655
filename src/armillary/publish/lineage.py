"""Walks from a published file to everything that made it, using only the edges in ``lineage.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from armillary.publish.export import LINEAGE, WEIGHTS, check_lineage
from armillary.recipe import DamagedFileError, Edge, UsageError, walk_back


def origins(file: Path) -> list[str]:
    """All ancestors of a published file (see `recipe.lineage`), nearest first.

    The files of the folder are first checked against their hashes. Publications of versions without edges lead to their
    run, the runs behind it, and the corpus.

    Raises:
        UsageError: the file is not part of a publication.
        DamagedFileError, ForeignFileError: as ``check_lineage``.
    """
    document = check_lineage(file.parent)
    files = {str(name) for name in document.get("files", {WEIGHTS: ""})}
    if file.name not in files:
        raise UsageError(f"{file}: not a file of the publication in {file.parent}; it has {', '.join(sorted(files))}")
    written = [Edge(f"file:{file.name}", "written by", f"run:{document['run']}")] if document["run"] else []
    return walk_back([*written, *_edges(file.parent / LINEAGE, document)], f"file:{file.name}")


def _edges(path: Path, document: dict[str, Any]) -> list[Edge]:
    try:
        if "edges" in document:
            return [Edge(str(node), str(how), str(origin)) for node, how, origin in document["edges"]]
        run = f"run:{document['run']}"
        argued = [other for runs in document["argued_by"].values() for other in runs]
        return [
            *(Edge(run, "argued by", f"run:{other}") for other in argued),
            Edge(run, "trained on", f"corpus:{document['corpus']['hash']}"),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"{path}: its edges cannot be read ({error!r}); publish the model again") from error
