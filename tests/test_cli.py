"""The command line as a person or a program meets it: exit codes, messages, JSON."""

import json
import subprocess
import sys

import pytest

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


def call(*arguments, cwd=None):
    command = [sys.executable, "-c", "from armillary.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_shows_an_example(verb):
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


def test_corpus_as_json_is_one_value(recipe):
    done = call("corpus", recipe, "--out", recipe.parent / "out", "--json", "--workers", 1)
    assert done.returncode == 0
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
def test_a_wrong_recipe_is_told_with_its_line(recipe, change, message):
    recipe.write_text(recipe.read_text().replace(*change))
    done = call("run", recipe, "--out", recipe.parent / "out")
    assert done.returncode == 2
    assert message in done.stderr and str(recipe) in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (recipe.parent / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["run", "nowhere.yaml"], ["nonsense"], ["demo", "--budget", "8x"], ["demo", "--language", "fr"]]
)
def test_wrong_use_is_2(arguments, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr and "Traceback" not in done.stderr


def test_failed_work_is_1(recipe):
    (recipe.parent / "out").write_text("a file where a folder should be")
    done = call("corpus", recipe, "--out", recipe.parent / "out", "--workers", 1)
    assert done.returncode == 1
    assert done.stderr and "Traceback" not in done.stderr
