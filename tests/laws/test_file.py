"""Law files: predictions after reading are those before writing, and what is torn, edited or strange is refused."""

import json

import numpy as np
import pytest

from armillary.laws import MixtureLaw
from armillary.laws.file import LawFile, Source, read_law, write_law
from armillary.recipe import UsageError

rng = np.random.default_rng(3)
X = rng.dirichlet(np.ones(3), 24)
Y = np.exp(1 + X @ rng.normal(size=(3, 2)) + 0.01 * rng.normal(size=(24, 2)))


@pytest.fixture(scope="module")
def law():
    return MixtureLaw(bootstraps=10).fit(X, Y)


@pytest.fixture
def path(law, tmp_path):
    path = tmp_path / "law.json"
    write_law(path, LawFile("mixture", law, ["a", "b", "c"], ["x", "y"], None, [Source("M.csv", "ab", 24)]), {"n": 24})
    return path


def test_predictions_are_the_same_to_the_last_bit(law, path):
    read = read_law(path)
    assert (read.kind, read.features, read.targets, read.size_column) == ("mixture", ["a", "b", "c"], ["x", "y"], None)
    assert read.sources == [Source("M.csv", "ab", 24)]
    for before, after in zip(law.predict(X), read.law.predict(X), strict=True):
        assert np.array_equal(before, after)


def test_the_same_fit_gives_the_same_file(path, tmp_path):
    again = tmp_path / "again.json"
    law = MixtureLaw(bootstraps=10).fit(X, Y)
    write_law(again, LawFile("mixture", law, ["a", "b", "c"], ["x", "y"], None, [Source("M.csv", "ab", 24)]), {"n": 24})
    assert again.read_bytes() == path.read_bytes()


def test_a_torn_file_is_refused(path):
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"law\.json"):
            read_law(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 99}, "of version 99 of law files"),
        ({"format": "other"}, "is no law file"),
        ({"targets": ["y", "x"]}, "torn or edited"),
        ({"law": {"object": "mixture:MixtureLaw", "attributes": {}}}, "torn or edited"),
    ],
)
def test_another_version_and_an_edited_file_are_refused(path, change, said):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=said):
        read_law(path)


def test_only_laws_come_to_life(path):
    class Stranger:
        pass

    with pytest.raises(TypeError, match=r"cannot hold a .*Stranger"):
        write_law(path, LawFile("mixture", Stranger(), [], [], None, []), {})
    # An honest checksum over a dishonest law.
    from armillary.laws import file

    document = json.loads(path.read_text())
    for where in ("file:importlib", "file:write_law", "mixture:np", "nowhere:Law", "mixture:Nothing"):
        document["law"] = {"object": where, "attributes": {}}
        body = {k: document[k] for k in ("summary", "kind", "features", "targets", "size_column", "sources", "law")}
        document["sha256"] = file._checksum(body)
        path.write_text(json.dumps(document))
        with pytest.raises(UsageError, match="which is no law"):
            read_law(path)


def test_values_that_json_has_not(tmp_path):
    awkward = [np.inf, float("nan"), np.arange(40).reshape(5, 8), np.zeros((0, 3)), np.array([True, False]), ("t", 1)]
    write_law(tmp_path / "l.json", LawFile("mixture", {"of": awkward, "none": None}, [], [], None, []), {})
    read = read_law(tmp_path / "l.json").law
    assert read["none"] is None and read["of"][0] == np.inf and np.isnan(read["of"][1])
    for before, after in zip(awkward[2:5], read["of"][2:5], strict=True):
        assert after.dtype == before.dtype and np.array_equal(before, after)
    assert read["of"][5] == ("t", 1)
