"""Law files: predictions after reading are those before writing, and what is torn, edited or strange is refused."""

import copy
import json

import numpy as np
import pytest

from armillary.laws import AnnealLaw, Curve, HyperparameterLaw, MixtureLaw, ScalingLaw
from armillary.laws.file import DamagedLawError, ForeignLawError, LawFile, Source, _checksum, read_law, write_law
from armillary.recipe import DamagedFileError, ForeignFileError, UsageError

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
        with pytest.raises(DamagedFileError, match=r"law\.json is torn"):
            read_law(path)


def test_flipped_bytes_are_noticed(path):
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        with pytest.raises((DamagedLawError, ForeignLawError), match=r"law\.json"):
            read_law(path)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"version": 99}, ForeignFileError, "of version 99 of law files, .*The file is left as it is"),
        ({"version": "1"}, ForeignFileError, "of version '1' of law files"),
        ({"version": True}, ForeignFileError, "of version True"),
        ({"format": "other"}, ForeignFileError, "is no law file"),
        ({"targets": ["y", "x"]}, DamagedFileError, "torn or edited"),
        ({"law": {"object": "mixture:MixtureLaw", "attributes": {}}}, DamagedFileError, "torn or edited"),
    ],
)
def test_another_version_and_an_edited_file_are_refused(path, change, error, said):
    text = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(error, match=said):
        read_law(path)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "null", "[]", "7", '"law"', "{}", "[" * 100_000, '{"a":' * 100_000, "\xff"])
def test_what_is_no_law_file(tmp_path, text):
    path = tmp_path / "law.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises((DamagedLawError, ForeignLawError), match=r"law\.json"):
        read_law(path)
    with pytest.raises(UsageError, match="Is a directory; give a file that 'armillary fit' wrote"):
        read_law(tmp_path)


def sealed(path, document):
    """Write a document with an honest checksum."""
    body = {k: document[k] for k in ("summary", "kind", "features", "targets", "size_column", "sources", "law")}
    path.write_text(json.dumps(document | {"sha256": _checksum(body)}))


def scaling():
    X = np.array([(n, d) for n in (1e7, 3e7, 1e8) for d in (1e9, 4e9)])
    return ScalingLaw(bootstraps=8).fit(X, 1.7 + 400 / X[:, 0] ** 0.34 + 1500 / X[:, 1] ** 0.35), ["n", "d"]


def hyperparameters():
    X = np.array([(n, d, lr, bs) for n in (1e7, 3e7) for d in (1e9, 4e9) for lr in (1e-3, 3e-3) for bs in (32, 64)])
    y = (1.7 + 400 / X[:, 0] ** 0.34 + 1500 / X[:, 1] ** 0.35) * (1 + 0.01 * np.log(X[:, 2] / 2e-3) ** 2)
    return HyperparameterLaw(bootstraps=8).fit(X, y), ["n", "d", "lr", "bs"]


def anneal():
    step = np.arange(50.0, 1001.0, 50.0)
    rates = {"constant": np.ones_like(step), "decay": np.clip((1000 - step) / 400, 0.05, 1.0)}
    curves = [
        Curve(name, 1e6, step, 1e-3 * rate, 2.5 + 4 * (np.cumsum(rate) + 1) ** -0.5 - 0.1 * (1 - rate))
        for name, rate in rates.items()
    ]
    return AnnealLaw(bootstraps=8).fit(curves), ["step", "lr"]


@pytest.fixture(scope="module")
def documents(law, tmp_path_factory):
    """A small law file of each kind, as JSON values."""
    folder, found = tmp_path_factory.mktemp("laws"), {}
    for kind, make in {
        "scaling": scaling,
        "hyperparameters": hyperparameters,
        "anneal": anneal,
        "mixture": lambda: (law, ["a", "b", "c"]),
    }.items():
        fitted, features = make()
        targets = ["x", "y"] if kind == "mixture" else ["loss"]
        write_law(folder / kind, LawFile(kind, fitted, features, targets, None, [Source("M.csv", "ab", 24)]), {})
        found[kind] = json.loads((folder / kind).read_text())
    return found


def changes(node, at=()):
    """Ways to damage a law: for each attribute one that lacks it, and for each array several wrong ones."""
    if isinstance(node, list):
        for i, part in enumerate(node):
            yield from changes(part, (*at, i))
    if not isinstance(node, dict):
        return
    if "array" in node:
        array = node["array"]
        short = array["data"][:-1] if isinstance(array["data"], list) else array["data"][: len(array["data"]) // 8 * 4]
        yield (*at, "array"), array | {"data": "no base64!"}
        yield (*at, "array"), array | {"data": short}
        yield (*at, "array"), array | {"shape": [*array["shape"], 1]}
        yield (*at, "array"), array | {"dtype": "O"}
        yield at, None
        return
    for name in node.get("attributes", {}):
        yield (*at, "attributes", name), "lacking"
        yield (*at, "attributes"), {("renamed" if n == name else n): v for n, v in node["attributes"].items()}
        yield (*at, "attributes", name), None
        yield (*at, "attributes", name), {"object": "scaling:ScalingLaw", "attributes": {}}
    for key, part in node.items():
        yield from changes(part, (*at, key))


@pytest.mark.parametrize("kind", ["scaling", "hyperparameters", "anneal", "mixture"])
def test_a_law_that_is_not_whole_is_refused_or_predicts_the_same(documents, tmp_path, kind):
    """With an honest checksum, as a program of another version would write it."""
    document, path = documents[kind], tmp_path / "law.json"
    sealed(path, document)
    whole = [np.asarray(part) for part in read_law(path).law.probe()]
    ways = list(changes(document["law"]))
    chosen = np.random.default_rng(0).permutation(len(ways))[:120]
    refused = 0
    for place, value in (ways[i] for i in chosen):
        broken = copy.deepcopy(document)
        node = broken["law"]
        for key in place[:-1]:
            node = node[key]
        if value == "lacking":
            del node[place[-1]]
        elif place:
            node[place[-1]] = value
        sealed(path, broken)
        try:
            said = read_law(path).law.probe()
        except (DamagedLawError, ForeignLawError) as error:
            assert str(path) in str(error) and "fit the law again from its tables" in str(error)
            refused += 1
            continue
        for before, after in zip(whole, said, strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-6)
    assert refused > len(chosen) / 2


def test_a_law_that_would_predict_otherwise_is_of_another_version(documents, tmp_path):
    document = copy.deepcopy(documents["scaling"])
    document["law"]["attributes"]["_tilt"]["array"]["data"] = [3.0]
    document["law"]["laws_version"] = 77
    sealed(tmp_path / "law.json", document)
    with pytest.raises(ForeignLawError, match="fitted by version 77 of the laws, and version 2 would predict other"):
        read_law(tmp_path / "law.json")


def test_files_of_version_1_are_read(documents, tmp_path):
    """They hold no predictions, and a scaling law that knows of nothing set aside."""
    document = copy.deepcopy(documents["scaling"])
    document["version"] = 1
    for key in ("laws_version", "predictions"):
        del document["law"][key]
    del document["law"]["attributes"]["set_aside_"]
    sealed(tmp_path / "law.json", document)
    law = read_law(tmp_path / "law.json").law
    assert law.set_aside_ == []
    sealed(tmp_path / "new.json", documents["scaling"])
    np.testing.assert_array_equal(
        law.predict([[1e8, 4e9]]).low, read_law(tmp_path / "new.json").law.predict([[1e8, 4e9]]).low
    )


def test_only_laws_come_to_life(path):
    class Stranger:
        pass

    with pytest.raises(TypeError, match=r"cannot hold a .*Stranger"):
        write_law(path, LawFile("mixture", Stranger(), [], [], None, []), {})
    document = json.loads(path.read_text())
    for where in ("file:importlib", "file:write_law", "mixture:np", "nowhere:Law", "mixture:Nothing", ["a"], None):
        document["law"] = {"object": where, "attributes": {}}
        sealed(path, document)
        with pytest.raises((DamagedLawError, ForeignLawError), match=r"which is no law|unhashable"):
            read_law(path)


def test_values_that_json_has_not(law, tmp_path):
    awkward = [np.inf, float("nan"), np.arange(40).reshape(5, 8), np.zeros((0, 3)), np.array([True, False]), ("t", 1)]
    strange = copy.copy(law)
    strange.seed = {"of": awkward, "none": None}
    write_law(tmp_path / "l.json", LawFile("mixture", strange, ["a", "b", "c"], ["x", "y"], None, []), {})
    read = read_law(tmp_path / "l.json").law.seed
    assert read["none"] is None and read["of"][0] == np.inf and np.isnan(read["of"][1])
    for before, after in zip(awkward[2:5], read["of"][2:5], strict=True):
        assert after.dtype == before.dtype and np.array_equal(before, after)
    assert read["of"][5] == ("t", 1)
