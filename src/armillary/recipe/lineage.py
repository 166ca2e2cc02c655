"""Lineage as a graph: edges from results to their origins, and the walk back over them (contract 5).

A node is ``KIND:NAME``: ``file:PATH`` (in a published folder), ``run:ID``, ``weights:SHA-256`` (of a file that no run
here wrote), ``corpus:HASH`` or ``prediction:ID`` (of the run or question that it was recorded for).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Edge(NamedTuple):
    """``node`` exists because of ``origin``; ``how`` is a verb: 'starts from', 'trained on', 'argued by', ..."""

    node: str
    how: str
    origin: str


def walk_back(edges: Iterable[Edge], node: str) -> list[str]:
    """All origins of ``node``, nearest first, each once; cycles end the walk."""
    origins: dict[str, list[str]] = {}
    for edge in edges:
        origins.setdefault(edge.node, []).append(edge.origin)
    found, waiting = {node: None}, [node]
    while waiting:
        for origin in origins.get(waiting.pop(0), ()):
            if origin not in found:
                found[origin] = None
                waiting.append(origin)
    return list(found)[1:]
