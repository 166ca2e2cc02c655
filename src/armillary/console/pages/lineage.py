"""Lineage: from a published folder or any run back to all its origins, one click at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from armillary.console.app import Page, missing
from armillary.console.places import Place
from armillary.recipe import ArmillaryError, Edge, read_json, sealed, walk_back

LINEAGE, RECORD = "lineage.json", "record.json"
_SHOWN = 400


def lineage(page: Page) -> dict[str, Any]:
    """The published folders and post-trainings of all places."""
    rows = []
    for place in page.watch.places:
        for key, folder in place.found.publications.items():
            try:
                document, whole = _document(folder)
            except (ArmillaryError, OSError) as error:
                page.problems.append(str(error))
                continue
            rows.append((place, key, folder, document, whole))
    return {"rows": rows}


def node(page: Page) -> dict[str, Any]:
    """One node: its direct origins, its users, and all its origins."""
    path = page.request.path_params
    place, kind, name = page.watch.place(path["place"]), path["kind"], path["name"]
    if place is None:
        raise missing()
    key = name if kind == "publication" else page.get("in")
    folder = place.found.publications.get(key)
    document: dict[str, Any] = {}
    whole = True
    if folder is not None:
        document, whole = _document(folder)
        edges = _edges(document)
    elif place.reader is not None and kind in ("run", "prediction"):
        edges = place.reader.edges([name])
    else:
        raise missing()
    files = [str(one) for one in document.get("files", {})]
    here = f"{kind}:{name}"
    if kind == "publication" and document.get("node") and not files:  # a post-training: the model that it took
        here = str(document["node"])
    elif kind == "publication":
        whence = (
            ("part of", str(document["node"])) if document.get("node") else ("written by", f"run:{document.get('run')}")
        )
        here = f"file:{next(iter(files), 'model.safetensors')}"
        edges = [*(Edge(f"file:{file}", *whence) for file in files or ["model.safetensors"]), *edges]
    origins = walk_back(edges, here)
    kinds = Counter(one.partition(":")[0] for one in origins)
    t = page.words
    return {
        "place": place,
        "kind": kind,
        "name": name,
        "title": folder.name if kind == "publication" and folder is not None else name,
        "inside": key if folder is not None else "",
        "folder": folder,
        "document": document,
        "whole": whole,
        "files": files,
        "names": document.get("names") if isinstance(document.get("names"), dict) else {},
        "direct": _grouped(edge for edge in edges if edge.node == here),
        "users": _grouped(Edge(edge.origin, edge.how, edge.node) for edge in edges if edge.origin == here),
        "origins": [one.partition(":")[::2] for one in origins[:_SHOWN]],
        "count": len(origins),
        "kinds": t.join([f"{t.one_of('kind', one)} {count}" for one, count in kinds.items()]),
        "known": _known(place, [one.removeprefix("run:") for one in origins[:_SHOWN] if one.startswith("run:")]),
        "domains": ((document.get("corpus") or {}).get("domains") or {})
        if isinstance(document.get("corpus"), dict)
        else {},
    }


def _grouped(edges: Any) -> list[tuple[str, str, str]]:
    """Relation, kind and name of the other end of each edge, without duplicates."""
    return list(dict.fromkeys((edge.how, *edge.origin.partition(":")[::2]) for edge in edges))


def _known(place: Place, runs: Sequence[str]) -> dict[str, Any]:
    """The rows of those runs that are in the place's store."""
    if place.reader is None or not runs:
        return {}
    try:
        return {row.run: row for row in place.reader.listed(runs)}
    except ArmillaryError:  # the lineage of the folder is still shown
        return {}


def _document(folder: Path) -> tuple[dict[str, Any], bool]:
    """The lineage of a published folder or a post-training, and whether its checksum matches.

    Raises:
        DamagedFileError: it is torn.
    """
    path = folder / LINEAGE
    if not path.exists():
        path = folder / RECORD
    document = dict(read_json(path, "lineage", "publish the model again"))
    seal = document.pop("sha256", None)
    whole = seal is None or sealed(document)["sha256"] == seal
    return {"run": None, **document}, whole


def _edges(document: dict[str, Any]) -> list[Edge]:
    """The edges of a lineage; invalid ones are skipped."""
    found = []
    for edge in document.get("edges", ()):
        if isinstance(edge, list) and len(edge) == 3:
            found.append(Edge(*map(str, edge)))
    run, corpus = f"run:{document.get('run')}", document.get("corpus")
    if not found and isinstance(corpus, dict):  # written by a version without edges
        argued = document.get("argued_by") or {}
        found = [Edge(run, "argued by", f"run:{other}") for runs in argued.values() for other in runs]
        found.append(Edge(run, "trained on", f"corpus:{corpus.get('hash')}"))
    return found
