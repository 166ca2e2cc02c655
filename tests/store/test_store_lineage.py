"""Runs that start from others: their parents in the store, and the lineage as edges."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from armillary.recipe import ArmillaryError, DamagedFileError, Edge, Start, walk_back
from armillary.store import Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "before-seams"


@pytest.fixture
def family(make_spec):
    """A run that starts from a file, its child and its grandchild."""
    base = make_spec(start=Start(weights="base.safetensors", sha256="b" * 64))
    child = make_spec(start=Start(run=base.id, sha256="c" * 64))
    return base, child, make_spec(start=Start(run=child.id, sha256="d" * 64))


def by_hand(folder, statement):
    with closing(sqlite3.connect(folder / "store.sqlite", isolation_level=None)) as db:
        db.execute(statement)


def test_a_run_is_stored_with_its_parents(family, make_spec, tmp_path):
    store = Store(tmp_path)
    store.add("a", [*family, make_spec()])
    base, child, grandchild = family
    assert [store.parents(spec.id) for spec in (base, child, grandchild, make_spec())] == [
        [],
        [base.id],
        [child.id],
        [],
    ]
    assert store.run_spec(child.id).start == child.start
    assert store.verify() == []
    with pytest.raises(ArmillaryError, match="is not in"):
        store.parents("0" * 16)


def test_lineage_leads_from_a_run_to_everything_that_made_it(family, make_spec, tmp_path):
    store = Store(tmp_path)
    base, child, grandchild = family
    points = [make_spec(seed=seed) for seed in (20, 21)]
    content = {"run": grandchild.id, "from_runs": [point.id for point in points]}
    store.record_prediction(grandchild.id, content)
    store.record_prediction("question", content)  # the same run, predicted for other weights
    store.add("a", [*family, *points, make_spec(seed=22)])
    edges = store.edges([grandchild.id])
    assert Edge(f"run:{child.id}", "starts from", f"run:{base.id}") in edges
    assert len(edges) == len(set(edges))
    found = walk_back(edges, f"run:{grandchild.id}")
    assert set(found) == {
        f"run:{child.id}", f"run:{base.id}", f"weights:{'b' * 64}", f"corpus:{base.corpus}",
        f"prediction:{grandchild.id}", "prediction:question", *(f"run:{point.id}" for point in points),
    }  # fmt: skip


def test_a_parent_that_the_store_lacks_is_a_node_without_edges(family, tmp_path):
    store, (base, child, _) = Store(tmp_path), family
    store.add("a", [child])
    assert walk_back(store.edges([child.id]), f"run:{child.id}") == [f"run:{base.id}", f"corpus:{child.corpus}"]
    assert store.edges(["0" * 16]) == []


def test_parents_changed_by_hand_are_found(family, tmp_path):
    store, (base, child, _) = Store(tmp_path), family
    store.add("a", [base, child])
    by_hand(tmp_path, "UPDATE runs SET parents = NULL")
    assert [text for text in store.verify() if child.id in text and "parents" in text]
    for damaged in ("'{\"a\": 1}'", "'[1]'", "'\"x\"'"):
        by_hand(tmp_path, f"UPDATE runs SET parents = {damaged}")
        for act in (lambda: store.parents(child.id), lambda: store.edges([child.id])):
            with pytest.raises(DamagedFileError, match="parents of run"):
                act()
        assert any("parents" in text for text in store.verify())


def test_a_store_of_format_2_gains_parents_and_is_refused_by_its_older_version(family, tmp_path):
    shutil.copy(FIXTURES / "store.sqlite", tmp_path)
    store = Store(tmp_path)
    known = store.study_runs("ladder")
    assert all(store.parents(run) == [] for run in known)
    store.add("a", family)
    assert store.parents(family[1].id) == [family[0].id]
    store.close()
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as db:
        assert db.execute("SELECT version FROM format").fetchall() == [(4,)]
    assert Store(tmp_path).chain().intact


def test_a_migration_that_was_killed_is_completed(family, tmp_path):
    shutil.copy(FIXTURES / "store.sqlite", tmp_path)
    by_hand(tmp_path, "ALTER TABLE runs ADD COLUMN parents JSON")  # without the version
    store = Store(tmp_path)
    store.add("a", family)
    assert store.parents(family[1].id) == [family[0].id] and store.chain().intact
