"""Examinations in a store: their rows, their place in the lineage, and what a changed folder leads to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from armillary.evaluate import Examination, Item, Result, write_examination
from armillary.recipe import ArmillaryError, DamagedFileError, Edge, UsageError, walk_back
from armillary.store import Store
from armillary.study.examined import open_store, record_examination


def examination(run: str | None, value: float = 0.5) -> Examination:
    item = Item("a" * 16, "gsm8k", "a" * 16, "s", "1", ("1",), "1", None, {"exact_match": value})
    result = Result("gsm8k", "gsm8k", "exact_match", value, 0.1, 0.9, 1, 0.0, None, "s")
    model = {"model": "m", "sha256": "c" * 64} | ({} if run is None else {"lineage": {"run": run, "corpus": "d" * 64}})
    return Examination((result,), {"gsm8k": (item,)}, model)


def test_an_examination_is_a_row_and_an_edge_of_its_run(tmp_path, make_spec) -> None:
    spec, folder = make_spec(), tmp_path / "exam"
    store = Store(tmp_path / "store")
    store.add("study", [spec])
    write_examination(folder, examination(spec.id))
    row = record_examination(store, folder)
    assert (row["run"], row["corpus"], row["model"]["sha256"]) == (spec.id, "d" * 64, "c" * 64)
    assert row["results"][0]["value"] == 0.5
    assert record_examination(store, folder) == row
    assert [key for key, _ in store.examinations()[spec.id]] == [row["examination"]]
    edges = store.edges([spec.id])
    assert Edge(f"run:{spec.id}", "examined by", f"examination:{row['examination']}") in edges
    assert f"examination:{row['examination']}" in walk_back(edges, f"run:{spec.id}")
    write_examination(folder, examination(spec.id, 0.25))
    record_examination(store, folder)
    assert [line["examined"] for line in store.overview()] == ["gsm8k exact_match 0.250"]
    assert len(store.examinations()[spec.id]) == 2


def test_a_row_that_was_changed_is_found(tmp_path) -> None:
    write_examination(tmp_path / "exam", examination(None))
    store = Store(tmp_path / "store")
    key = record_examination(store, tmp_path / "exam")["examination"]
    with store.database.writing() as db:
        db.exec_driver_sql("UPDATE stages SET content = replace(content, '0.5', '0.9')")
    assert any(key in problem and "changed" in problem for problem in store.verify())


def test_what_is_no_examination_or_no_store_is_refused(tmp_path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(UsageError, match="not found"):
        record_examination(store, tmp_path)
    folder = tmp_path / "exam"
    write_examination(folder, replace(examination(None), model={}))
    (folder / "items" / "gsm8k.jsonl").write_text("")
    with pytest.raises(DamagedFileError, match="not the items"):
        record_examination(store, folder)
    assert store.examinations() == {}
    with pytest.raises(UsageError, match=r"no store\.sqlite"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no such folder"):
        open_store(tmp_path / "nowhere", f"sqlite:///{tmp_path}/store/store.sqlite")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ArmillaryError, match="missing"):
        open_store(tmp_path / "store", f"sqlite:///{tmp_path}/other.sqlite")
    assert not (tmp_path / "other.sqlite").exists()
