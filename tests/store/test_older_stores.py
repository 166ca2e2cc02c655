"""A store that an older version wrote reads the same, number by number (``tests/fixtures/before-seams``, fc3a88b)."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sa

from armillary.store import Reader, RunFilter, Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "before-seams"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture
def folder(tmp_path):
    shutil.copy(FIXTURES / "store.sqlite", tmp_path)
    return tmp_path


def stage_taken_over(entry):
    """Entries that format 4 added for outcomes of stages that were there."""
    return entry.kind == "stage" and entry.about["taken_over"]


def numbers(result):
    """What a run measured, without what later versions add and an older run does not have."""
    assert not result.measured and not result.skipped
    return {name: value for name, value in asdict(result).items() if name not in ("measured", "skipped")}


def before_examinations(row):
    """A row without the column of examinations, which an older store does not have."""
    assert not row["examined"]
    return {name: value for name, value in row.items() if name != "examined"}


def reading(store):
    """All that the older version read from the store."""
    wanted = EXPECTED["store"]
    target = EXPECTED["ids"]["target"]
    states = {run: store.state(run) for run in wanted["states"]}
    chain = store.chain()
    found = {
        "states": {run: [s.status, s.error, numbers(s.result) if s.result else None] for run, s in states.items()},
        "specs": {run: store.run_spec(run).model_dump(mode="json") for run in wanted["specs"]},
        "started_at": {run: store.started_at(run) for run in wanted["started_at"]},
        "studies": {study: sorted(store.study_runs(study)) for study in wanted["studies"]},
        "overview": sorted(map(before_examinations, store.overview()), key=lambda row: (row["run"], row["study"])),
        "stage": store.stage("mixture", "0123456789abcdef"),
        "rates": store.rates(),
        "rates_overview": store.rates_overview(),
        "prediction": store.prediction(target),
        "verdict": store.verdict(target),
        "order": asdict(store.order(target)),
        "journal": [asdict(entry) for entry in chain.entries if not stage_taken_over(entry)],
        "problems": list(chain.problems),
    }
    return json.loads(json.dumps(found))


def test_a_store_of_an_older_version_reads_identically(folder):
    store = Store(folder)
    assert reading(store) == EXPECTED["store"]
    store.close()
    assert reading(Store(folder)) == EXPECTED["store"]  # also after it was migrated


def test_facts_of_runs_that_an_older_version_added_are_completed(make_spec, tmp_path):
    specs = [make_spec(seed=seed) for seed in range(4)]
    store = Store(tmp_path)
    store.add("a", specs)
    with store.engine.begin() as db:
        db.execute(sa.text("DROP TABLE run_facts"))
        db.execute(sa.text("DROP INDEX runs_by_time"))
    store.close()
    before = (tmp_path / "store.sqlite").read_bytes()
    wanted = RunFilter(tags=("seed-2",), shape="1x16", mixture=(("sky", ">=", 0.5),))
    assert [row.run for row in Reader(tmp_path).page(wanted, 10)] == [specs[2].id]  # from the specifications
    assert (tmp_path / "store.sqlite").read_bytes() == before
    again = Store(tmp_path)
    assert [row.run for row in again.page(wanted, 10)] == [specs[2].id]
    with again.engine.connect() as db:
        assert db.execute(sa.text("SELECT count(*) FROM run_facts")).scalar() == 4
        assert "runs_by_time" in {index["name"] for index in sa.inspect(db).get_indexes("runs")}
