"""A YAML file is read as people mean it, or refused with its line; it never costs more than a moment."""

from __future__ import annotations

import os
import random
import re
import socket

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from armillary.recipe import LargeRun, MixtureLimits, Recipe, UsageError, load_document, load_recipe, load_training

BASE = """\
name: {name}
corpus:
  domains:
    {a}: {{source: text/a}}
    {b}: {{source: text/b, train: {train}}}
    third: {{source: text/c}}
target: {{{a}: {weight}}}
model: {{depth: 1}}
training: {{tokens: {tokens}, lr: {lr}, warmup_share: {share}}}
"""
DEFAULTS = {"name": "x", "a": "nb", "b": "sv", "train": "true", "weight": "1"}
NUMBERS = {"tokens": "10000", "lr": "4.0e-3", "share": "0.05"}


@pytest.fixture
def load(tmp_path):
    def of(more="", **changes):
        path = tmp_path / "r.yaml"
        path.write_text(BASE.format(**{**DEFAULTS, **NUMBERS, **changes}) + more, encoding="utf-8")
        return load_recipe(path)

    return of


@pytest.mark.parametrize(
    "name", ["no", "on", "y", "2023", "1e3", "2023-01-01", "null", "'no'", "0x10", "12:30:45", "=", "~"]
)
def test_a_name_is_what_is_written(load, name):
    recipe = load(a=name)
    assert next(iter(recipe.corpus.domains)) == next(iter(recipe.target)) == name.strip("'")


@pytest.mark.parametrize("name", ["2024", "no", "1e3", "2023-01-01", "1.0"])
def test_the_name_of_a_recipe_is_what_is_written(load, name):
    assert load(name=name).name == name


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("10000", 10000),
        ("1e6", 10**6),
        ("1.0e+6", 10**6),
        ("10_000", 10000),
        ("20M", 20_000_000),
        ("1.5k", 1500),
        ("2B", 2 * 10**9),
        ("2 T", 2 * 10**12),
        ("'10000'", 10000),
        ("'20M'", 20_000_000),
        ("+5", 5),
        ("0.1M", 100_000),
    ],
)
def test_a_size_is_what_people_mean(load, text, tokens):
    found = load(tokens=text).training.tokens
    assert found == tokens and type(found) is int


@pytest.mark.parametrize(
    ("text", "value"), [("4e-3", 4e-3), ("4E-3", 4e-3), (".004", 0.004), ("1", 1.0), ("0.4%", 0.004), ("1_0", 10.0)]
)
def test_a_number_is_what_people_mean(load, text, value):
    assert load(lr=text).training.lr == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("no", False), ("Off", False), ("YES", True), ("False", False)]
)
def test_true_and_false_where_they_are_asked_for(load, text, value):
    assert load(train=text).corpus.domains["sv"].train is value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": "010000"}, "training.tokens: with a leading 0 some programs read this in base 8; write 10000"),
        ({"tokens": "-010"}, "write 10 "),
        ({"tokens": "0x10"}, "training.tokens: write the number with the digits 0 to 9 only (given: 0x10)"),
        ({"tokens": "0o17"}, "digits 0 to 9 only"),
        ({"tokens": "1:30:00"}, "training.tokens: some programs read this as base 60"),
        ({"tokens": "true"}, "training.tokens: must be a whole number, such as 20000, 1e6 or 20M (given: 'true')"),
        ({"tokens": "yes"}, "must be a whole number"),
        ({"tokens": "5%"}, "must be a whole number (given: 5%)"),
        ({"tokens": "1e-3"}, "must be a whole number"),
        ({"tokens": "'1,000'"}, "write the number without separators, or as 1_000"),
        ({"tokens": "20m"}, "must be a whole number, such as"),
        ({"tokens": "9" * 400}, "number is too large"),
        ({"tokens": "1e999999999999"}, "number is too large"),
        ({"tokens": "null"}, "give exactly one of 'tokens' (a number) and 'budget_share'"),
        ({"tokens": "[1]"}, "must be a whole number"),
        ({"lr": ".inf"}, "training.lr: must be a finite number (given: inf)"),
        ({"lr": ".nan"}, "finite number"),
        ({"lr": "1e400"}, "number is too large"),
        ({"lr": "2023-01-01"}, "training.lr: must be a number, such as 0.05"),
        ({"lr": "0b1"}, "digits 0 to 9 only"),
        ({"lr": ""}, "training.lr: has no value; give one, or remove the key"),
        ({"share": "yes"}, "training.warmup_share: must be a number"),
        ({"share": "true"}, "must be a number"),
        ({"weight": "true"}, "must be a number"),
        ({"train": "2"}, "corpus.domains.sv.train: must be true or false"),
        ({"train": "maybe"}, "must be true or false (given: 'maybe')"),
        ({"name": "null"}, "name: has no value"),
        ({"name": "[a]"}, "name: must be text"),
        ({"name": "!!python/name:os.system x"}, "is not supported; remove it"),
    ],
)
def test_what_could_be_misread_is_refused(load, tmp_path, change, said):
    with pytest.raises(UsageError) as caught:
        load(**change)
    assert said in str(caught.value)
    for line in str(caught.value).splitlines():
        assert re.match(rf"{re.escape(str(tmp_path))}/r\.yaml:\d+: .*; column \d+$", line), line


def test_the_column_is_where_the_value_stands(load):
    with pytest.raises(UsageError, match=r":9: training\.tokens: .*; column 20$"):
        load(tokens="0x10")


@pytest.mark.parametrize(
    "bad",
    [
        "target",
        "Target",
        "..",
        ".",
        "a/..",
        "../a",
        "/a",
        "a/",
        "''",
        "' '",
        "'a '",
        '"a\\tb"',
        '"a\\u200bb"',
        '"\\ud800"',
        "a" * 300,
        "维" * 30,
    ],
)
def test_a_domain_name_that_cannot_be(load, bad):
    with pytest.raises(UsageError, match=r":4: corpus\.domains\.") as caught:
        load(a=bad)
    assert len(str(caught.value).splitlines()) == 1  # what only follows from it is not told


@pytest.mark.parametrize("good", ["wiki/en", "my wiki", "维基", "'dclm:health'", "a.b", "\U0001f600", "...a"])
def test_a_domain_name_that_can_be(load, good):
    assert next(iter(load(a=good).corpus.domains)) == good.strip("'")


@pytest.mark.parametrize(("a", "b"), [("Wiki", "wiki"), ("é", "e\u0301"), ("straße", "STRASSE")])
def test_domains_that_are_one_file_somewhere(load, a, b):
    with pytest.raises(
        UsageError, match=r":5: corpus\.domains\..* differs from .* only in case or in the encoding of accents"
    ):
        load(a=a, b=b)


BAD_NAMES = [
    "../../x",
    "/tmp/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    ".hidden",
    "'~'",
    "-x",
    "''",
    "' '",
    "con",
    "NUL.txt",
    "lpt1",
    "a:b",
    "a*",
    "x" * 300,
    '"a\\nb"',
    '"a\\0"',
    "x.",
    "' x'",
    "'x '",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_folder_beside_the_recipe(load, tmp_path, name):
    with pytest.raises(UsageError, match=r":1: name: the name .*; give a"):
        load(name=name)
    large = tmp_path / "large.yaml"
    large.write_text(f"name: {name}\ncorpus: c\nrun: {{}}\n")
    with pytest.raises(UsageError, match=r":1: name: the name .*; give a"):
        load_training(large)


def test_the_same_number_in_a_large_run_and_in_limits(tmp_path):
    large = tmp_path / "large.yaml"
    text = (
        "name: big\ncorpus: c\nrun:\n  model: {n_layers: 2, d_model: 32, n_heads: 2, n_kv_heads: 2, head_dim: 16,"
        " d_ff: 64, vocab_size: 1k}\n  context_length: 32\n  batch_sequences: 4\n  steps: 2e1\n"
        "  mixture: [{start_step: 0, weights: {no: 50%, '1': 0.5}}]\n  optimizer: {lr: 4e-3}\n  seed: 1\n"
    )
    large.write_text(text)
    run = load_document(large, LargeRun).run
    assert (run.steps, run.model.vocab_size, run.mixture[0].weights) == (20, 1000, {"no": 0.5, "1": 0.5})
    large.write_text(text.replace("seed: 1", "seed: 010").replace("steps: 2e1", "steps: true"))
    with pytest.raises(UsageError) as caught:
        load_training(large)
    assert len(str(caught.value).splitlines()) == 2
    large.write_text(text + "  schedule: {warmup_steps: 30}\n")
    with pytest.raises(
        UsageError, match=r":11: run\.schedule: warmup_steps \(30\) and decay_steps \(0\) do not fit into"
    ):
        load_training(large)
    limits = tmp_path / "limits.yaml"
    limits.write_text("budget_tokens: 10B\ndomain_tokens: {no: 2B, 2: 1e9}\n")
    assert load_document(limits, MixtureLimits).domain_tokens == {"no": 2e9, "2": 1e9}


def test_anchors_and_merge_keys_are_read(load):
    more = "families:\n  - &wide {name: base, width_per_layer: 48}\n  - {<<: *wide, name: other, qk_norm: yes}\n"
    families = load(more).families
    assert [f.width_per_layer for f in families] == [48, 48] and families[1].qk_norm
    with pytest.raises(UsageError, match="merges a mapping"):
        load("limits: {<<: 1}\n")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB, "including those of aliases"),
        ("[" * 5000, "nested more than 60 levels deep"),
        ("a: " + "{a: " * 100 + "1" + "}" * 100, "nested more than 60 levels deep"),
        ("name: &a [*a]\n", "an alias refers to the anchor around it"),
        ("x: " + "a" * 10**7, "is larger than 256 KiB"),
        ("- a\n" * 60_000, "has more than 30,000 entries"),
        (b"\xff\xfen", "r.yaml:1: not UTF-8 at byte 0; save it as UTF-8"),
        (b"name: x\n# \xe4\n", "r.yaml:2: not UTF-8 at byte 10"),
        ("name: x\n".encode("utf-16-le"), "r.yaml:1: contains the character U+0000, which YAML does not allow"),
        (b"name: x\n# a\x1bb\n", "r.yaml:2: contains the character U+001B"),
        ("\tname: x\n", "indent with spaces, not with tabs"),
        ("a: 1\n---\nb: 2\n", "found another document"),
        ("? [a, b]\n: 1\n", "a key must be text, not a sequence"),
        ("name: *nowhere\n", "not YAML: found undefined alias"),
        ("a: b: c\n", "not YAML: mapping values are not allowed here"),
        ("%FOO\n", "not YAML"),
        ("", "is empty; the document is a mapping with the keys"),
        ("null", "is empty; the document is a mapping with the keys"),
        ("- name: x\n", "holds a list; the document is a mapping with the keys"),
        ("name", "holds a single value; the document is a mapping with the keys"),
    ],
)
def test_what_is_no_recipe_costs_a_moment_and_a_line(tmp_path, content, said):
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for load in (load_recipe, load_training):
        with pytest.raises(UsageError) as caught:
            load(path)
        assert said in str(caught.value) and str(caught.value).startswith(str(path))


def test_a_place_that_is_no_file_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        one.bind("socket")
        for path in (tmp_path / "pipe", tmp_path / "socket"):
            with pytest.raises(UsageError, match="it is a pipe, socket or device"):
                load_training(path)
    with pytest.raises(UsageError, match="Is a directory"):
        load_training(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_training(tmp_path / "a\0b")
    with pytest.raises(UsageError, match="cannot be read"):
        load_training(tmp_path / ("a" * 300))


def test_a_home_folder_of_no_person(tmp_path, load):
    load()
    path = tmp_path / "r.yaml"
    path.write_text(path.read_text().replace("text/a", "~no-such-person/a"))
    with pytest.raises(UsageError, match=r":4: corpus\.domains\.nb\.source: .*home folder of a user that does not"):
        load_recipe(path)


_WORDS = ["no", "010", "1:2:3", "~", "''", "*a", "&a x", "[", "{", "]", "}", ":", "#", "- ", "\t", "!!int 3", "<<: x"]
_WORDS += [
    "true",
    ".nan",
    "-1",
    "1e999",
    "5%",
    "20M",
    "\n",
    "  ",
    "'",
    '"',
    "|",
    ">",
    "é",
    "\u2028",
    "tokens: 3\n",
    "0",
]


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_changed_recipe_is_read_or_refused_with_file_and_line(tmp_path_factory, seed, changes):
    rng = random.Random(seed)
    text = (
        BASE.format(**DEFAULTS, **NUMBERS)
        + "limits: {floors: {nb: 0.1}}\nbudget: 2h\nstudy: {anneal: {shares: [0.1]}}\n"
    )
    for _ in range(changes):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.choice([0, 1, 1, 3, 10]))
        text = text[:start] + rng.choice(_WORDS) + text[end:]
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert isinstance(load_recipe(path), Recipe)
    except UsageError as error:
        for line in str(error).splitlines():
            assert re.match(rf"{re.escape(str(path))}(:\d+)?: \S", line), line


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4) | st.sampled_from(["nb", "1h"]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_any_value_anywhere_is_read_or_refused_with_file_and_line(tmp_path_factory, data):
    document = Recipe.model_validate(yaml.safe_load(BASE.format(**DEFAULTS, **NUMBERS))).model_dump(mode="json")
    part, place = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(part[place], dict) and part[place] and data.draw(st.booleans()):
        part = part[place]
        place = data.draw(st.sampled_from(sorted(part)))
    part[place] = data.draw(_VALUES)
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    try:
        assert isinstance(load_recipe(path), Recipe)
    except UsageError as error:
        for line in str(error).splitlines():
            assert re.match(rf"{re.escape(str(path))}(:\d+)?: \S", line), line
