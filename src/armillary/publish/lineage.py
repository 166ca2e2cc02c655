"""Walks from a model to everything that made it, using only the edges in its files.

The edges of a published folder are in ``lineage.json``, those of a post-training in its ``record.json``. A model that
was trained or merged but not published has its edges in the records beside it (`plain`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.publish.export import LINEAGE, WEIGHTS, check_lineage
from armillary.publish.plain import plain_lineage
from armillary.recipe import DamagedFileError, Edge, UsageError, read_sealed, walk_back

_RECORD, _RECORD_FORMAT = "record.json", 1


@dataclass(frozen=True)
class Lineage:
    """A ``node``, all known ``edges``, and the ``names`` of the files behind some nodes."""

    node: str
    edges: tuple[Edge, ...]
    names: Mapping[str, str]

    @property
    def origins(self) -> list[str]:
        """All ancestors of the node, nearest first."""
        return walk_back(self.edges, self.node)

    def to_json(self) -> dict[str, Any]:
        """The node, its origins with their names, and the edges between them."""
        found = {self.node: None, **dict.fromkeys(self.origins)}
        return {
            "node": self.node,
            "origins": [{"node": node, "name": self.names.get(node)} for node in self.origins],
            "edges": [list(edge) for edge in self.edges if edge.node in found],
        }


def lineage_of(path: Path) -> Lineage:
    """The lineage of a published folder or a file in it, a model folder, or the folder of a training or post-training.

    Files are first checked against their hashes.

    Raises:
        UsageError: nothing there has a lineage.
        DamagedFileError, ForeignFileError: a file was changed, or is of a newer version.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; give a model, or the folder of a post-training")
    if (folder / LINEAGE).exists():
        document = check_lineage(folder)
        return _of_file(path.name if path.is_file() else str(document["weights"]["file"]), folder, document)
    record: dict[str, Any] = {}
    if (folder / _RECORD).exists() and not (folder / "config.json").exists():
        record = read_sealed(folder / _RECORD, "record", _RECORD_FORMAT, "run the same command again")
    if "taken" in record:
        if "edges" not in record:
            raise UsageError(f"{folder / _RECORD}: was written by a version without lineage; run `post run` again")
        return Lineage(str(record["node"]), _edges(folder / _RECORD, record), record["names"])
    if (folder / "model" / "config.json").exists():
        folder = folder / "model"
    if not (folder / "config.json").exists():
        raise UsageError(
            f"{path}: has no lineage; give a published folder, a model that was trained here, or the folder of a "
            "post-training"
        )
    document, digests = plain_lineage(folder)
    if not document["edges"]:
        raise UsageError(
            f"{folder}: no record leads to its origins; a record of `post sft`, `post dpo` or `post merge` must be "
            "beside its unchanged files"
        )
    name = path.name if path.name in digests else str(document["weights"]["file"])
    return _of_file(name, folder, {**document, "files": digests})


def origins(file: Path) -> list[str]:
    """All ancestors of a published file (see `recipe.lineage`), nearest first.

    The files of the folder are first checked against their hashes. Publications of versions without edges lead to their
    run, the runs behind it, and the corpus.

    Raises:
        UsageError: the file is not part of a publication.
        DamagedFileError, ForeignFileError: as ``check_lineage``.
    """
    return _of_file(file.name, file.parent, check_lineage(file.parent)).origins


def _of_file(name: str, folder: Path, document: dict[str, Any]) -> Lineage:
    files = {str(one) for one in document.get("files", {WEIGHTS: ""})}
    if name not in files:
        raise UsageError(
            f"{folder / name}: not a file of the publication in {folder}; it has {', '.join(sorted(files))}"
        )
    node = f"file:{name}"
    written = []
    if document.get("node"):
        written = [Edge(node, "part of", str(document["node"]))]
    elif document["run"]:
        written = [Edge(node, "written by", f"run:{document['run']}")]
    edges = (*written, *_edges(folder / LINEAGE, document))
    return Lineage(node, edges, document.get("names", {}))


def _edges(path: Path, document: dict[str, Any]) -> tuple[Edge, ...]:
    try:
        if "edges" in document:
            return tuple(Edge(str(node), str(how), str(origin)) for node, how, origin in document["edges"])
        run = f"run:{document['run']}"
        argued = [other for runs in document["argued_by"].values() for other in runs]
        return (
            *(Edge(run, "argued by", f"run:{other}") for other in argued),
            Edge(run, "trained on", f"corpus:{document['corpus']['hash']}"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"{path}: its edges cannot be read ({error!r}); publish the model again") from error
