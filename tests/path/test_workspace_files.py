"""The files of a workspace that are read back: good, damaged, or not for this program."""

import json
import re

import pytest

from armillary.path import Workspace
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, UsageError
from fakes import FakeCorpus, make_plan, make_recipe


@pytest.fixture
def workspace(tmp_path):
    said = []
    made = Workspace(make_recipe(), tmp_path, say=said.append)
    object.__setattr__(made, "said", said)
    return made


@pytest.mark.parametrize("below", [".", "results"])
@pytest.mark.parametrize("how", ["a file", "a broken link"])
def test_a_place_where_no_results_can_lie_is_refused_at_once(how, below, tmp_path):
    place = tmp_path / "place"
    if how == "a file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "unmounted")
    with pytest.raises(UsageError, match=f"{re.escape(str(place))}: not a folder .*--out"):
        Workspace(make_recipe(), place / below)
    assert sorted(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("url", ["foo", "sqlite:////nowhere/store.sqlite", "nodriver://user:secret@host/x"])
def test_a_database_that_cannot_be_used_is_refused_before_the_corpus_is_built(url, tmp_path, monkeypatch):
    monkeypatch.setattr(Workspace, "corpus", lambda self: pytest.fail("the corpus was built"))
    with (
        pytest.raises(ArmillaryError, match=r"database|/nowhere") as caught,
        Workspace(make_recipe(), tmp_path / "results", database=url).lab(),
    ):
        pass
    assert "secret" not in str(caught.value)


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "flipped": lambda data: re.sub(rb'("sha256": ?")(.)', lambda m: m[1] + (b"0" if m[2] != b"0" else b"1"), data),
    "swapped": lambda data: b"[1, 2]",
    "binary": lambda data: b"\xff\xfe\x00" + data,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_wall_time_is_kept_aside_and_counted_anew(workspace, how):
    with workspace._timed("corpus"):
        pass
    path = workspace.folder / "cost.json"
    torn = DAMAGE[how](path.read_bytes())
    path.write_bytes(torn)
    assert workspace.wall_s() == {}
    assert [other.read_bytes() for other in workspace.folder.iterdir()] == [torn]
    assert len(workspace.said) == 1 and "cost.json" in workspace.said[0] and "counted" in workspace.said[0]


def test_wall_time_of_an_older_and_of_a_newer_version(workspace):
    path = workspace.folder / "cost.json"
    path.write_text('{"corpus": 1.5}')
    assert workspace.wall_s() == {"corpus": 1.5}
    path.write_text('{"format": 9, "wall_s": {}}')
    with pytest.raises(ForeignFileError, match=r"cost\.json"):
        workspace.wall_s()
    assert path.read_text() == '{"format": 9, "wall_s": {}}'


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_plan_is_refused_and_left(workspace, how):
    path, corpus = workspace.folder / "plan.json", FakeCorpus()
    from armillary.path.workspace import _SavedPlan
    from armillary.recipe import write_sealed

    saved = _SavedPlan(key="k", plan=make_plan(workspace.recipe))
    write_sealed(path, saved.model_dump(mode="json"))
    assert workspace._read_plan(path, "k", corpus) == saved and workspace._read_plan(path, "other", corpus) is None
    torn = DAMAGE[how](path.read_bytes())
    path.write_bytes(torn)
    with pytest.raises(DamagedFileError, match=r"plan\.json.*remove it to size the studies again"):
        workspace._read_plan(path, "k", corpus)
    assert path.read_bytes() == torn
    path.write_text(json.dumps({"format": 9}))
    with pytest.raises(ForeignFileError, match=r"plan\.json"):
        workspace._read_plan(path, "k", corpus)
