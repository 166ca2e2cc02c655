"""The lineage of a post-training: edges from its models and files of data back to the base and the questions.

Every stage, training and merge has its edges in its ``record.json``. This module adds those between them: joined files,
models that answered questions, the parts behind a prediction, and the base's own origins if it was published here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armillary.files import file_sha256
from armillary.post import ITEMS
from armillary.post.joins import Written
from armillary.post.tuning import digest_model
from armillary.publish import lineage_of
from armillary.recipe import ArmillaryError, Edge, read_json, read_sealed

_FORMAT, _REMEDY = 1, "run `armillary post run` again"


class Graph:
    """The lineage of the post-training in ``out``.

    ``edges`` are those that no record below ``out`` has. ``nodes`` are the models by the name of their step.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.edges: list[Edge] = []
        self.nodes: dict[str, str] = {}
        self._names: dict[str, set[str]] = {}  # equal files are one node
        self._hashed: dict[Path, str] = {}

    def made(self, file: Written, how: str, *sources: Path) -> Path:
        """Add a joined file or a part of one; return its path."""
        self._hashed[file.path] = file.node
        self._call(file.node, self._named(file.path))
        self.edges += [Edge(file.node, how, self.data(source)) for source in sources]
        return file.path

    def answered(self, file: Path, how: str, model: Path | str) -> None:
        """Add the model whose answers are in a file of data, or decided about it."""
        self.edges.append(Edge(self.data(file), how, self._model_node(model)))

    def data(self, file: Path) -> str:
        """The node of a file of data, which is hashed once."""
        if file not in self._hashed:
            self._hashed[file] = f"data:{file_sha256(file)}"
            self._call(self._hashed[file], self._named(file))
        return self._hashed[file]

    def model(self, name: str, folder: Path) -> None:
        """Add the model of a step, and for the base the edges of its publication or training."""
        node = self._model_node(folder)
        self.nodes[name] = node
        self._call(node, self._named(folder))
        if not folder.is_relative_to(self.out):
            with contextlib.suppress(ArmillaryError):
                known = lineage_of(folder)
                self.edges += [
                    Edge(node, "published from", edge.origin) for edge in known.edges if edge[0] == known.node
                ]
                self.edges += [edge for edge in known.edges if edge.node != known.node]

    def predicted(self, step: str) -> None:
        """Add the prediction of the score of a step, and the runs that it was made from."""
        run = read_sealed(self.out / step / "record.json", "record of a fine-tuning", _FORMAT, _REMEDY)["run"]
        self.edges.append(Edge(f"run:{run}", "predicted by", f"prediction:{run}"))
        for path in sorted((self.out / "gain").glob("*.json")):
            part = read_json(path, "score of a part", _REMEDY)
            if "run" in part and "edges" in part:
                self.edges.append(Edge(f"prediction:{run}", "argued by", f"run:{part['run']}"))
                self.edges += [Edge(*edge) for edge in part["edges"]]
                self._call(f"data:{part['data']}", self._named(path.with_suffix(".jsonl")))

    def all(self) -> tuple[list[Edge], dict[str, str]]:
        """Every edge once, and the names of files and models by their node."""
        edges = []
        for path in sorted(self.out.glob("*/record.json")):
            record = read_sealed(path, "record", _FORMAT, _REMEDY)
            edges += [Edge(*edge) for edge in record.get("edges", record.get("lineage", []))]
            self._name_files(path.parent.name, record)
        names = {node: ", ".join(sorted(files)) for node, files in self._names.items()}
        return list(dict.fromkeys((*edges, *self.edges))), names

    def _name_files(self, folder: str, record: Mapping[str, Any]) -> None:
        files = record.get("files", {})
        if ITEMS in files:
            self._call(f"data:{files[ITEMS]}", f"{folder}/{ITEMS}")
        for role, hashed in record.get("inputs", {}).items() if "stage" in record and "edges" in record else ():
            if role.startswith("evaluation ") and f"data:{hashed}" not in self._names:
                self._call(f"data:{hashed}", Path(role.partition(" ")[2]).name)

    def _model_node(self, model: Path | str) -> str:
        """A hash of a model's files; of a server or another kind of file, its name."""
        if "://" in str(model):
            return f"model:{str(model).partition('://')[2].rpartition('@')[2]}"
        try:
            return f"model:{digest_model(Path(model))}"
        except ArmillaryError:
            return f"model:{Path(model).name}"

    def _call(self, node: str, name: str) -> None:
        self._names.setdefault(node, set()).add(name)

    def _named(self, path: Path) -> str:
        return str(path.relative_to(self.out)) if path.is_relative_to(self.out) else path.name
