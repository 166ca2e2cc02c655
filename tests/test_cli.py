"""The command line as a person or a program meets it: exit codes, messages, JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.cli import main

VERBS = [
    ["corpus"],
    ["study", "mixture"],
    ["study", "anneal"],
    ["study", "ladder"],
    ["predict"],
    ["train"],
    ["verdict"],
    ["run"],
    ["demo"],
    ["report"],
    ["runs"],
]


@pytest.fixture
def call(capfd, monkeypatch):
    """Give a command in this process, which is much faster than in one of its own, and see what a caller would."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["armillary", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, out, err)

    return command


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_shows_an_example(call, verb):
    done = call(*verb, "--help")
    assert done.returncode == 0
    assert f"Example: armillary {' '.join(verb)}" in done.stdout


@pytest.fixture
def recipe(tiny_texts, tmp_path):
    lines = ["name: tiny", "corpus:", "  domains:"]
    lines += [
        f"    {name}: {{source: {path}, train: {str(name != 'voyage').lower()}}}" for name, path in tiny_texts.items()
    ]
    lines += ["  tokenizer: {vocab_size: 300}", "  max_document_chars: 200", "target: {voyage: 1}", "model: {depth: 2}"]
    path = tmp_path / "tiny.yaml"
    path.write_text("\n".join([*lines, "training: {tokens: 20000, context_length: 16}"]) + "\n")
    return path


def test_json_is_one_value_and_nothing_else(recipe, call):
    command = [Path(sys.executable).with_name("armillary"), "corpus", recipe, "--out", recipe.parent / "out", "--json"]
    done = subprocess.run(
        [*map(str, command), "--workers", "2"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "corpus: read: 100%" in done.stderr  # progress goes elsewhere
    assert set(json.loads(done.stdout)["domains"]) == {"sky", "sea", "code", "voyage"}
    assert json.loads(call("runs", recipe, "--out", recipe.parent / "out", "--json").stdout) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("target:", "targt:"), ":10: unknown key 'targt'; nearest valid: 'target'"),
        (("voyage: 1", "voyag: 1"), "nearest valid: 'voyage'"),
        (("depth: 2", "depth: two"), ":11: model.depth"),
        (("name: tiny", "name: [tiny"), "not YAML"),
    ],
)
def test_a_wrong_recipe_is_told_with_its_line(recipe, call, change, message):
    recipe.write_text(recipe.read_text().replace(*change))
    done = call("run", recipe, "--out", recipe.parent / "out")
    assert done.returncode == 2
    assert message in done.stderr and str(recipe) in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (recipe.parent / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["run", "nowhere.yaml"], ["nonsense"], ["demo", "--budget", "8x"], ["demo", "--language", "fr"]]
)
def test_wrong_use_is_2(arguments, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_a_database_that_is_none_is_2(recipe, call):
    done = call("runs", recipe, "--out", recipe.parent / "out", "--database", "nonsense")
    assert done.returncode == 2 and "give an SQLAlchemy URL" in done.stderr


@pytest.mark.parametrize("name", ["a[red]b.yaml", "a[/x]b.yaml", "a:100:b.yaml"])
def test_paths_are_told_as_they_are(name, call):
    """Brackets are no markup in a path, and line 100 is no picture."""
    done = call("runs", name)
    assert done.returncode == 2 and f"{name}: cannot be read" in done.stderr


def test_failed_work_is_1(recipe, call):
    (recipe.parent / "out").write_text("a file where a folder should be")
    done = call("corpus", recipe, "--out", recipe.parent / "out", "--workers", 1)
    assert done.returncode == 1
    assert done.stderr and "Traceback" not in done.stderr
