"""Law files: predictions after reading are those before writing, and what is torn, edited or strange is refused."""

import copy
import hashlib
import json
import shlex

import numpy as np
import pytest

from armillary.laws import AnnealLaw, Curve, ExaminationLaw, GainLaw, HyperparameterLaw, MixtureLaw, ScalingLaw
from armillary.laws.files import (
    LAWS,
    DamagedLawError,
    ForeignLawError,
    LawFile,
    OtherLawsWarning,
    Source,
    read_law,
    write_law,
)
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
        with pytest.raises(DamagedFileError, match=r"law\.json is truncated"):
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
        ({"version": 99}, ForeignFileError, "law file of version 99, .*The file was not changed"),
        ({"version": "1"}, ForeignFileError, "of version '1'"),
        ({"version": True}, ForeignFileError, "of version True"),
        ({"format": "other"}, ForeignFileError, "is not a law file"),
        ({"targets": ["y", "x"]}, DamagedFileError, "damaged or edited"),
        ({"fitted": {}}, DamagedFileError, "damaged or edited"),
        ({"program": "9.9"}, DamagedFileError, "damaged or edited"),
        ({"sha256": None}, DamagedFileError, "damaged or edited"),
        ({"more": 1}, DamagedFileError, "damaged or edited"),
        ({"version": 2}, DamagedFileError, "damaged or edited"),
        ({"version": 1}, DamagedFileError, "damaged or edited"),
        ({"version": 4}, ForeignFileError, "law file of version 4, but this version reads up to 3"),
        ({"version": 0}, ForeignFileError, "of version 0"),
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


def test_a_table_given_as_a_law_is_not_to_be_written_over(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n1e7,1e9,3\n")
    with pytest.raises(ForeignLawError, match=r"runs\.csv is not a law file; give a file that 'armillary fit' wrote$"):
        read_law(path)


def sealed(path, document):
    """Write a document with an honest checksum."""
    document = {name: value for name, value in document.items() if name != "sha256"}
    seal = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document | {"sha256": seal}))


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


def examination():
    losses = np.linspace(3.6, 2.9, 7)
    accuracy = 0.25 + 0.6 / (1 + np.exp(6 * (losses - 3.1)))
    return ExaminationLaw(chance=0.25, items=1000, bootstraps=8).fit(losses[:, None], accuracy), ["v"]


def gain():
    sizes = np.repeat([125.0, 250.0, 500.0], 2)
    return GainLaw(items=300, bootstraps=8).fit(sizes[:, None], 0.9 - 3 * sizes**-0.4), ["examples"]


@pytest.fixture(scope="module")
def documents(law, tmp_path_factory):
    """A small law file of each kind, as JSON values."""
    folder, found = tmp_path_factory.mktemp("laws"), {}
    for kind, make in {
        "scaling": scaling,
        "hyperparameters": hyperparameters,
        "anneal": anneal,
        "examination": examination,
        "gain": gain,
        "mixture": lambda: (law, ["a", "b", "c"]),
    }.items():
        fitted, features = make()
        targets = ["x", "y"] if kind == "mixture" else ["loss"]
        write_law(folder / kind, LawFile(kind, fitted, features, targets, None, [Source("M.csv", "ab", 24)]), {})
        found[kind] = json.loads((folder / kind).read_text())
    assert found.keys() == LAWS.keys()
    return found


def places(node, at=()):
    """Every place in a document, as the keys that lead to it."""
    yield at
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


OTHERS = (None, True, "x", -1, 0.5, 10**400, [], {}, [1, 2], {"dtype": "<f8", "shape": [1], "data": [1.0]})


@pytest.mark.parametrize("kind", LAWS)
def test_a_law_that_was_edited_and_sealed_again_is_refused_or_predicts_the_same(documents, tmp_path, kind):
    """With an honest checksum, as a program of another version would write it."""
    document, path = documents[kind], tmp_path / "law.json"
    sealed(path, document)
    whole = [np.asarray(part) for part in read_law(path).law.probe()]
    rng = np.random.default_rng(0)
    found = [place for place in places({k: document[k] for k in ("params", "fitted", "predictions")}) if place]
    refused = 0
    ways = [found[i] for i in rng.permutation(len(found))[:80]]
    for place in ways:
        broken = copy.deepcopy(document)
        node = broken
        for key in place[:-1]:
            node = node[key]
        match rng.integers(3):
            case 0:
                del node[place[-1]]
            case 1 if isinstance(node, dict):
                node["renamed"] = node.pop(place[-1])
            case _:
                node[place[-1]] = OTHERS[rng.integers(len(OTHERS))]
        sealed(path, broken)
        try:
            said = read_law(path).law.probe()
        except (DamagedLawError, ForeignLawError) as error:
            assert str(path) in str(error) and "fit the law again from its tables: armillary fit" in str(error)
            refused += 1
            continue
        for before, after in zip(whole, said, strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-6)
    assert refused > len(ways) / 2


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("fitted", "noise"), None, r"fitted\.noise is None; it must be an array with dtype, shape and data"),
        (("fitted", "forms", 0, "weight"), "all", r"fitted\.forms\[0\]\.weight is 'all'; it must be a finite number"),
        (("fitted", "noise", "data"), [], r"fitted\.noise\.data has 0 numbers, but its shape is \[1\]"),
        (("fitted", "noise", "dtype"), "O", r"fitted\.noise\.dtype is 'O'; it must be <f8 or <f4"),
        (("fitted", "single_target"), 1, r"fitted\.single_target is 1; it must be true or false"),
        (("params", "bootstraps"), 8.0, r"params\.bootstraps is 8\.0; it must be a whole number"),
        (("features",), "n", r"the file\.features is 'n'; it must be a list"),
        (("sources",), [{"name": "M.csv"}], r"the file\.sources\[0\] lacks 'sha256'"),
        (("set_aside",), "none", "set_aside is not a list of objects"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_must_be(documents, tmp_path, place, value, said):
    document = copy.deepcopy(documents["scaling"])
    node = document
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    sealed(tmp_path / "law.json", document)
    with pytest.raises(DamagedLawError, match=said):
        read_law(tmp_path / "law.json")


def test_fields_of_another_program_are_not_called_damage(documents, tmp_path):
    document = copy.deepcopy(documents["scaling"])
    document["program"] = "7.0"
    document["fitted"]["curvature"] = 1.0
    sealed(tmp_path / "law.json", document)
    with pytest.raises(ForeignLawError, match=r"written by Armillary 7\.0, .* has 'curvature', which this version"):
        read_law(tmp_path / "law.json")
    document["kind"] = "tides"
    sealed(tmp_path / "law.json", document)
    with pytest.raises(ForeignLawError, match="laws of kind 'tides' are unknown; known are scaling"):
        read_law(tmp_path / "law.json")


def test_a_law_that_would_predict_otherwise_is_of_another_version(documents, tmp_path):
    document = copy.deepcopy(documents["scaling"])
    document["fitted"]["noise_tilt"]["data"] = [3.0]
    document["laws_version"] = 77
    sealed(tmp_path / "law.json", document)
    with pytest.raises(
        ForeignLawError, match="fitted by version 77 of the laws, and version 4 would predict different"
    ):
        read_law(tmp_path / "law.json")


def test_a_law_of_another_version_that_predicts_the_same_is_read_with_a_warning(documents, tmp_path):
    sealed(tmp_path / "law.json", documents["scaling"] | {"laws_version": 77, "program": "7.0"})
    with pytest.warns(OtherLawsWarning, match="fitted by version 77 of the laws and is used unchanged"):
        law = read_law(tmp_path / "law.json").law
    np.testing.assert_array_equal(law.predict([[1e8, 4e9]]).low, scaling()[0].predict([[1e8, 4e9]]).low)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("scaling", "scaling --points M.csv --columns n,d,loss"),
        ("hyperparameters", "scaling --points M.csv --columns n,d,lr,bs,loss"),
        ("mixture", "mixture --runs M.csv --losses LOSSES.csv --columns x,y"),
        ("anneal", "anneal --curves FOLDER"),
        ("examination", "examination --points M.csv --columns v,loss --chance 0.25 --items 1000"),
    ],
)
def test_a_refusal_gives_the_command_that_makes_a_new_file(documents, tmp_path, kind, options):
    path = tmp_path / "my law.json"
    for change in ({"sha256": "0"}, {"version": 9}):
        path.write_text(json.dumps(documents[kind] | change))
        with pytest.raises((DamagedLawError, ForeignLawError)) as caught:
            read_law(path)
        assert f"armillary fit {options} --out {shlex.quote(str(path))}" in str(caught.value)


def test_a_refusal_names_the_form_that_was_fitted(documents, tmp_path):
    document = copy.deepcopy(documents["scaling"]) | {"version": 9}
    document["params"]["form"] = "chinchilla"
    (tmp_path / "law.json").write_text(json.dumps(document))
    with pytest.raises(ForeignLawError, match="--columns n,d,loss --form chinchilla --out"):
        read_law(tmp_path / "law.json")


def test_only_registered_laws_of_the_kind_named_are_written(law, tmp_path):
    path = tmp_path / "law.json"
    for kind, thing in (("mixture", object()), ("scaling", law), ("tides", law)):
        with pytest.raises(TypeError, match=f"a law of kind '{kind}' is not a"):
            write_law(path, LawFile(kind, thing, [], [], None, []), {})
    with pytest.raises(UsageError, match="not fitted yet"):
        write_law(path, LawFile("mixture", MixtureLaw(), [], [], None, []), {})
    strange = copy.copy(law).set_params(seed={"of": 1})
    with pytest.raises(UsageError, match=r"cannot be written: params\.seed is \{'of': 1\}; it must be a whole number"):
        write_law(path, LawFile("mixture", strange, ["a", "b", "c"], ["x", "y"], None, []), {})
    assert not path.exists()


def test_numbers_that_json_has_not(law, tmp_path):
    """In what people read they are null; an infinite parameter is read back as such."""
    fitted, features = scaling()
    fitted.set_params(max_extrapolation=np.inf)
    path = tmp_path / "law.json"
    summary = {"rows": [{"error": float("nan"), "runs": np.float64(np.inf)}]}
    write_law(path, LawFile("scaling", fitted, features, ["loss"], None, []), summary)
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["summary"] == {"rows": [{"error": None, "runs": None}]}
    assert read_law(path).law.max_extrapolation == np.inf


def test_no_private_name_stands_in_a_file(documents):
    for document in documents.values():
        for place in places(document):
            assert not any(isinstance(key, str) and key.startswith("_") for key in place)
