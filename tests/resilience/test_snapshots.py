"""Snapshots belong to one run's folder and to one user."""

import os
import shutil
import time

import pytest

from armillary.recipe import ArmillaryError
from armillary.resilience import forget, memory_folder


@pytest.fixture
def run(tmp_path):
    """A run's folder, whose snapshots are removed in the end."""
    folder = tmp_path / "run"
    folder.mkdir()
    yield folder
    forget(folder)


def test_a_folder_finds_its_snapshots_again_and_a_new_one_does_not(run):
    place = memory_folder(run)
    assert place.stat().st_mode & 0o777 == 0o700
    assert memory_folder(run) == place
    forget(run)
    assert not place.exists() and not (run / "snapshots").exists()
    place = memory_folder(run)
    (place / "step-3").mkdir()
    shutil.rmtree(run)
    run.mkdir()
    try:
        assert memory_folder(run) != place
    finally:
        shutil.rmtree(place)


def test_a_place_that_cannot_be_written_is_named(run):
    (run / "snapshots").mkdir()
    with pytest.raises(ArmillaryError, match=r"snapshots: snapshots cannot be kept there \(Is a directory\)"):
        memory_folder(run)


def test_without_snapshots_nothing_is_made_to_be_removed(run):
    forget(run)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("text", [b"", b"../../../home", b"\xff\xfe", b"A" * 32, b"0" * 31])
def test_a_damaged_name_is_replaced(run, text):
    (run / "snapshots").write_bytes(text)
    place = memory_folder(run)
    assert place.parent.name == "shm" and place.is_dir()


def test_a_place_that_others_can_write_to_is_refused(run):
    place = memory_folder(run)
    place.chmod(0o777)
    try:
        with pytest.raises(ArmillaryError, match="others can write to it"):
            memory_folder(run)
    finally:
        place.chmod(0o700)


def test_only_old_snapshots_of_dead_processes_are_removed(run):
    """What a killed run left goes with the next run; what lives, is young or is not a folder of snapshots stays."""
    place = memory_folder(run)
    name = place.name[:-32]
    dead, young, odd = (place.with_name(f"{name}{letter * 32}") for letter in "dye")
    old = time.time() - 7200
    try:
        for one, owner in ((dead, "999999999 1"), (young, "999999999 1"), (odd, "no number")):
            one.mkdir(mode=0o700)
            (one / "step-3").mkdir()
            (one / "owner").write_text(owner)
        for one in (dead, odd, place):
            os.utime(one, (old, old))
        memory_folder(run)
        assert place.is_dir() and young.is_dir()
        assert not dead.exists() and not odd.exists()
    finally:
        for one in (dead, young, odd):
            shutil.rmtree(one, ignore_errors=True)
