"""Law files of older versions: each kind in ``vN`` was written by a program of that version, before version 3.

``expected.json`` beside them holds what the last program of version 2 predicted from each file that it read. Annealing
laws got other parameters later, so their files of that time are refused.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from armillary.laws.files import DamagedLawError, ForeignLawError, LawFile, read_law, write_law
from armillary.laws.files.old import upgraded

HERE = Path(__file__).parent
EVERY = sorted(path for path in HERE.glob("v[0-9]/*.json") if path.name != "expected.json")
FILES = [path for path in EVERY if path.stem != "anneal"]
OLD = [path for path in FILES if path.parent.name in ("v1", "v2")]


def lists(parts):
    return [np.asarray(part).tolist() for part in parts]


def said(name, law):
    """Predictions of a law, and what else its kind is asked for."""
    kind = name.split("-")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"scaling": of_scaling, "hyperparameters": of_grid, "mixture": of_mixture}[kind](law)


def of_scaling(law):
    X = [[1e8, 4e9], [6e8, 5e10]]
    return {
        "predict": lists(law.predict(X)),
        "half": lists(law.predict(X, 0.5)),
        "extrapolation": law.extrapolation(X).tolist(),
        "noise": np.asarray(law.noise_).tolist(),
        "weights": law.weights_,
        "parameters": {name: np.asarray(value).tolist() for name, value in law.parameters_.items()},
    }


def of_grid(law):
    best = law.optimum(1e8, 8e9)
    ends = [*best.lr, *best.bs, *best.loss, *best.lr_flat, *best.bs_flat, best.extrapolation]
    return {
        "predict": lists(law.predict([[1e7, 1e9, 1e-3, 64], [1e8, 8e9, 2e-3, 128]])),
        "best": lists(ends),
        "parameters": law.parameters_,
    }


def of_mixture(law):
    X = [[0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]
    answer = {
        "predict": lists(law.predict(X)),
        "target": lists(law.target(X, [1.0, 2.0])),
        "noise": law.noise_.tolist(),
        "draws": law.draws(X).tolist(),
        "chosen": {name: weight.tolist() for name, weight in law.chosen_.items()},
    }
    if len(law.sizes_):
        answer["larger"] = lists(law.predict(X, sizes=6.4e7))
        answer["smaller"] = law.draws(X, sizes=2e6).tolist()
    return answer


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_older_file_predicts_what_it_did(path, tmp_path):
    expected = json.loads((path.parent / "expected.json").read_text())[path.stem]
    before = path.read_bytes()
    read = read_law(path)
    assert close(said(path.stem, read.law), expected)
    assert path.read_bytes() == before
    # Written again it is a file of this version, and the same to the last bit.
    write_law(tmp_path / "new.json", read, {})
    again = read_law(tmp_path / "new.json")
    assert again.law.to_json() == read.law.to_json()
    assert [getattr(again, name) for name in ("kind", "features", "targets", "sources", "columns", "set_aside")] == [
        getattr(read, name) for name in ("kind", "features", "targets", "sources", "columns", "set_aside")
    ]


def close(one, other):
    """Equal but for the rounding of another machine."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    return np.allclose(one, other, rtol=1e-9, atol=0, equal_nan=True)


def test_every_kind_is_there_in_every_version():
    kinds = {"anneal", "hyperparameters", "mixture", "scaling"}
    for version in ("v1", "v2", "v3"):
        assert kinds <= {path.stem for path in EVERY if path.parent.name == version}


@pytest.mark.parametrize("path", [path for path in EVERY if path.stem == "anneal"], ids=name_of)
def test_an_annealing_law_from_before_the_rate_was_a_variable_is_refused_and_not_changed(path):
    before = path.read_bytes()
    with pytest.raises(
        ForeignLawError,
        match=r"parameters of this kind have another meaning since version 3; fit the law again .*armillary fit anneal",
    ):
        read_law(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", OLD, ids=name_of)
def test_an_older_file_that_was_torn_or_edited_is_refused_with_the_command_that_makes_a_new_one(path, tmp_path):
    whole, copy = path.read_bytes(), tmp_path / "law.json"
    for size in (0, len(whole) // 2, len(whole) - 3):
        copy.write_bytes(whole[:size])
        with pytest.raises(DamagedLawError, match=r"law\.json is truncated or not JSON"):
            read_law(copy)
    rng = np.random.default_rng(len(whole))
    for place in rng.integers(0, len(whole), 12):
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        with pytest.raises((DamagedLawError, ForeignLawError), match=r"law\.json"):
            read_law(copy)
    document = json.loads(whole)
    document["targets"] = ["other"]
    copy.write_text(json.dumps(document))
    with pytest.raises(DamagedLawError, match=r"damaged or edited .*; fit the law again .*: armillary"):
        read_law(copy)


def changes(node, at=()):
    """Ways to change an old law: an attribute that is missing, renamed, null or an object; an array that is torn."""
    if isinstance(node, list):
        for i, part in enumerate(node):
            yield from changes(part, (*at, i))
    if not isinstance(node, dict):
        return
    if "array" in node:
        array = node["array"]
        short = array["data"][:-1] if isinstance(array["data"], list) else array["data"][: len(array["data"]) // 8 * 4]
        for part in ({"data": "no base64!"}, {"data": short}, {"shape": [*array["shape"], 1]}, {"dtype": "O"}):
            yield (*at, "array"), array | part
        yield at, None
        return
    for name in node.get("attributes", {}):
        yield (*at, "attributes"), {n: v for n, v in node["attributes"].items() if n != name}
        yield (*at, "attributes"), {("renamed" if n == name else n): v for n, v in node["attributes"].items()}
        for value in (None, {"object": "scaling:ScalingLaw", "attributes": {}}, {"object": "os:system"}, {"dict": [1]}):
            yield (*at, "attributes", name), value
    for key, part in node.items():
        yield from changes(part, (*at, key))


@pytest.mark.parametrize("path", [path for path in OLD if path.parent.name == "v2"], ids=name_of)
def test_an_old_law_that_is_not_whole_is_refused_or_predicts_the_same(path, tmp_path, monkeypatch):
    """With an honest checksum."""
    monkeypatch.setattr("armillary.laws.files.old.whole", lambda document: True)
    document, copy = json.loads(path.read_bytes()), tmp_path / "law.json"
    whole = [np.asarray(part) for part in read_law(path).law.probe()]
    ways = list(changes(document["law"]))
    chosen = np.random.default_rng(0).permutation(len(ways))[:60]
    refused = 0
    for place, value in (ways[i] for i in chosen):
        broken = json.loads(path.read_bytes())
        node = broken["law"]
        for key in place[:-1]:
            node = node[key]
        if place:
            node[place[-1]] = value
        copy.write_text(json.dumps(broken))
        try:
            said = read_law(copy).law.probe()
        except (DamagedLawError, ForeignLawError) as error:
            assert str(copy) in str(error) and "fit the law again from its tables: armillary fit" in str(error)
            refused += 1
            continue
        for before, after in zip(whole, said, strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-6)
    assert refused > len(chosen) / 2


def test_an_old_file_names_the_attribute_that_is_wrong(tmp_path):
    document = json.loads((HERE / "v2" / "scaling.json").read_bytes())
    del document["law"]["attributes"]["_tilt"]
    with pytest.raises(ValueError, match="its scaling:ScalingLaw lacks '_tilt'"):
        upgraded(document)
    document["law"]["object"] = "os:system"
    with pytest.raises(ValueError, match="it contains a 'os:system', which is not a law of versions 1 and 2"):
        upgraded(document)
    assert isinstance(read_law(HERE / "v2" / "scaling.json"), LawFile)
