"""Snapshots belong to one run's folder and to one user."""

import shutil

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
