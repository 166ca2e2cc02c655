"""The registry behind ``--on``: addresses are refused before any work, and a new place is one registration."""

from __future__ import annotations

import pytest

from armillary.launch import LocalExecutor, check_place, open_place, register_place
from armillary.launch.workers import places
from armillary.recipe import UsageError
from armillary.store import Store


@pytest.mark.parametrize("on", ["", "rya", "ray:/host", "ray://host", "ray://:1", "slurm://x", "RAY"])
def test_an_address_of_no_place_is_refused_with_those_that_are(on: str) -> None:
    with pytest.raises(UsageError, match=rf"--on {on}: unknown; give ray \(.*\) or ray://HOST:PORT"):
        check_place(on)


def test_a_registered_place_is_found_by_its_name_and_named_in_errors(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(places, "_PLACES", dict(places._PLACES))
    checked = []
    register_place(
        "here",
        places.Place("here", checked.append, lambda store, corpus, on, workers: LocalExecutor(store, corpus, workers)),
    )
    check_place("here://a")
    assert checked == ["here://a"]
    executor = open_place("here", Store(tmp_path / "store"), tmp_path / "corpus", 3)
    assert executor.n_workers == 3 and executor.corpus == tmp_path / "corpus"
    with pytest.raises(UsageError, match=r"ray://HOST:PORT or here"):
        check_place("there")
