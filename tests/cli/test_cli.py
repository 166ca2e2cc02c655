"""The command line as a person or a program meets it: exit codes, messages, JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.cli import main
from armillary.evaluate import Examination, write_examination

VERBS = [
    ["corpus"],
    ["study", "mixture"],
    ["study", "anneal"],
    ["study", "lr"],
    ["study", "ladder"],
    ["study", "power"],
    ["predict"],
    ["train"],
    ["verdict"],
    ["run"],
    ["demo"],
    ["report"],
    ["submit"],
    ["jobs"],
    ["logs"],
    ["cancel"],
    ["console"],
    ["runs"],
    ["runs", "export"],
    ["rates"],
    ["verify"],
    ["store", "backup"],
    ["plan"],
    ["plan", "estimate"],
    ["plan", "validate"],
    ["plan", "measure"],
    ["goodput", "report"],
    ["goodput", "simulate"],
    ["goodput", "limits"],
    ["goodput", "compare"],
    ["import"],
    ["fit", "mixture"],
    ["fit", "scaling"],
    ["fit", "anneal"],
    ["fit", "examination"],
    ["predict-law"],
    ["optimise-mixture"],
    ["best-schedule"],
    ["best-lr"],
    ["compare"],
    ["next-run"],
    ["reproduce"],
    ["generate"],
    ["chat"],
    ["serve"],
    ["convert"],
    ["logits"],
    ["publish"],
    ["lineage"],
    ["evaluate", "contest"],
    ["leaderboard"],
    ["forecast", "record"],
    ["forecast", "judge"],
    ["evaluate", "judge"],
    *(["post", verb] for verb in ("evolve", "decontaminate", "leaks", "diversity", "reject")),
    ["post", "run"],
    ["post", "examine"],
    ["post", "check"],
    ["post", "sft"],
    ["post", "pairs"],
    ["post", "select"],
    ["post", "dpo"],
]


@pytest.fixture
def call(capfd, monkeypatch):
    """Run a command in this process, which is much faster than a subprocess; return what a caller sees."""

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


def test_help_lists_the_main_path_first_then_studies_then_laws(call):
    """Every verb stands in one part of it."""
    from armillary.cli.verbs import PANELS

    shown = call("--help").stdout
    assert "Others" not in shown
    names = [name for part in PANELS.values() for name in part]
    assert set(names) == {verb[0] for verb in VERBS} and names[:3] == ["run", "demo", "report"]
    places = [re.search(rf"^\W*{name}\s", shown, re.MULTILINE).start() for name in names]
    assert places == sorted(places)
    assert [shown.index(part) for part in PANELS] == sorted(shown.index(part) for part in PANELS)


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
    done = call("corpus", recipe, "--out", recipe.parent / "out", "--json", "--workers", 1)
    assert done.returncode == 0
    assert "corpus: read: 100%" in done.stderr  # progress goes elsewhere
    assert set(json.loads(done.stdout)["domains"]) == {"sky", "sea", "code", "voyage"}
    out = recipe.parent / "out"
    assert "3 parts, all intact\nchecked: cost.json, recipe.yaml, corpus\n" in call("verify", out).stdout
    for verb in ("runs", "rates"):
        for where in ((recipe, "--out", out), (out,), (out / "recipe.yaml",), (out / "recipe.yaml", "--out", out)):
            done = call(verb, *where, "--json")
            assert done.returncode == 2 and "store.sqlite: no database yet; run `armillary run" in done.stderr
    assert not (out / "store").exists()  # to look is not to create
    (out / "store" / "runs" / "0123456789abcdef").mkdir(parents=True)
    assert "has runs; restore it from a backup" in call("runs", out).stderr


@pytest.mark.parametrize("verb", ["runs", "rates"])
def test_a_list_of_no_results_creates_none(recipe, call, verb, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    for where in ((recipe,), (recipe, "--out", "elsewhere")):
        done = call(verb, *where)
        assert done.returncode == 2 and "no results yet; run `armillary run" in done.stderr
    done = call(verb, tmp_path)
    assert done.returncode == 2 and "the folder of results" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_results_lie_beside_the_recipe(recipe, call, tmp_path, monkeypatch):
    """Also where the command is given elsewhere; what an earlier version left elsewhere is used, with a word."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = call("corpus", recipe, "--workers", 1)
    assert done.returncode == 0 and (tmp_path / "tiny" / "corpus").is_dir() and not any(elsewhere.iterdir())
    (tmp_path / "tiny").rename(elsewhere / "tiny")
    done = call("corpus", recipe, "--workers", 1)
    assert done.returncode == 0 and not (tmp_path / "tiny").exists()
    assert "where an earlier version put them" in done.stderr


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
    (recipe.parent / "out").mkdir()
    (recipe.parent / "out" / "corpus").write_text("a file where a folder should be")
    done = call("corpus", recipe, "--out", recipe.parent / "out", "--workers", 1)
    assert done.returncode == 1
    assert done.stderr and "Traceback" not in done.stderr


def numeric_options():
    """Every option with a number of every verb: its verb's words, its own name, and what Typer knows of it."""
    from typing import get_args, get_origin, get_type_hints

    from armillary.cli.verbs import app

    def verbs(group, words):
        for verb in group.registered_commands:
            yield [*words, verb.name or verb.callback.__name__], verb.callback
        for part in group.registered_groups:
            yield from verbs(part.typer_instance, [*words, part.name or part.typer_instance.info.name])

    for words, callback in verbs(app, []):
        for name, hint in get_type_hints(callback, include_extras=True).items():
            kind, *options = get_args(hint) if get_origin(hint) is not None else (hint,)
            if options and {int, float} & {kind, *get_args(kind)}:
                yield words, name, options[-1]


def test_every_number_is_checked_at_its_option():
    found = list(numeric_options())
    assert len(found) > 30
    assert not [(words, name) for words, name, option in found if option.min is None and option.callback is None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict-law", "l.json", "--at", "a.csv", "--out", "o.csv", "--interval", "90"], "did you mean 0.9?"),
        (["predict-law", "l.json", "--at", "a.csv", "--out", "o.csv", "--interval", "1"], "above 0 and below 1"),
        (["predict-law", "l.json", "--at", "a.csv", "--out", "o.csv", "--interval", "nan"], "above 0 and below 1"),
        (["predict-law", "l.json", "--at", "a.csv", "--out", "o.csv", "--size", "big"], "'big' is not a model size"),
        (["leaderboard", "r", "--level", "95"], "did you mean 0.95?"),
        (["report", "r.yaml", "--language", "cn"], "'--language': 'cn' is not one of 'en', 'zh'"),
        (["report", "r.yaml", "--until", "end"], "'--until': 'end' is not one of 'mixture'"),
        (["run", "r.yaml", "--workers", "0"], "'--workers': 0 must be at least 1"),
        (["run", "r.yaml", "--workers", "two"], "'--workers': 'two' is not a whole number"),
        (["run", "r.yaml", "--workers", "1.5"], "'--workers': '1.5' is not a whole number"),
        (["predict-law", "l.json", "--at", "a.csv", "--out", "o.csv", "--interval", "x"], "'x' is not a number"),
        (
            ["fit", "examination", "--points", "p", "--out", "o", "--columns", "a", "--items", "9", "--chance", "25"],
            "0.25?",
        ),
        (["next-run", "l.json", "--target", "t.csv", "--budget", "-1"], "a finite number above 0"),
        (["best-schedule", "l.json", "--size", "1M", "--steps", "9", "--peak-lr", "0"], "a finite number above 0"),
        (["best-lr", "l.json", "--tokens", "1B", "--params", "-1B"], "'-1B' is not a model size"),
        (["generate", "m", "--prompt", "p", "--top-p", "0"], "above 0 and at most 1"),
        (["generate", "m", "--prompt", "p", "--temperature", "-1"], "at least 0"),
    ],
)
def test_a_wrong_number_is_refused_before_any_file_is_read(arguments, said, call):
    done = call(*arguments)
    words = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2 and said in words, done.stderr
    assert next(argument for argument in reversed(arguments) if argument.startswith("--")) in words


def test_help_docs_and_registry_name_the_same_forms(call):
    from armillary.laws.workbench import FORMS

    help_text = " ".join(call("fit", "scaling", "--help").stdout.replace("│", " ").split())
    docs = (Path(__file__).parents[2] / "docs" / "laws.md").read_text()
    named = re.search(r"auto: .*? or basin", help_text).group()
    assert set(FORMS) == set(re.findall(r"[a-z-]+", named)) & set(FORMS)
    assert [form for form in FORMS if f"`{form}`" not in docs] == []


@pytest.fixture
def points(tmp_path):
    """A ladder as a table, and two runs to predict: one near, one far beyond what was tested."""
    rows = ["run,params,tokens,loss"]
    for i, (n, d) in enumerate((n, d) for n in (1e7, 3e7, 1e8) for d in (1e9, 3e9, 1e10)):
        rows.append(f"r{i},{n},{d},{1.7 + 400 / n**0.34 + 1500 / d**0.35 + 0.002 * (-1) ** i}")
    (tmp_path / "P.csv").write_text("\n".join(rows))
    (tmp_path / "near.csv").write_text("index,tokens,params\n7,2e10,1e8\n")
    (tmp_path / "far.csv").write_text("params,tokens\n1e12,1e14\n")
    return tmp_path


def test_a_law_from_a_table_to_predictions(call, points):
    done = call("fit", "scaling", "--points", points / "P.csv", "--out", points / "law.json", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert {"law", "parameters_of_form", "parameters", "largest_runs_left_out"} <= summary.keys()
    done = call("predict-law", points / "law.json", "--at", points / "near.csv", "--out", points / "pred.csv")
    assert done.returncode == 0, done.stderr
    header, row = (points / "pred.csv").read_text().splitlines()
    assert header == "index,loss,loss_low,loss_high,extrapolation"
    index, loss, low, high, factor = map(float, row.split(","))
    assert index == 7 and low < loss < high and factor == pytest.approx(2)


def test_a_prediction_beyond_what_runs_support_is_refused_with_the_remedy(call, points):
    call("fit", "scaling", "--points", points / "P.csv", "--out", points / "law.json")
    done = call("predict-law", points / "law.json", "--at", points / "far.csv", "--out", points / "pred.csv")
    assert done.returncode == 2 and "times the largest compute" in done.stderr and "Traceback" not in done.stderr
    assert not (points / "pred.csv").exists()


def test_law_verbs_with_wrong_input(call, points):
    (points / "bad.csv").write_text("params,tokens,loss\n1e7,1e9,3\n1e7,1e9,-3\n")
    law = points / "law.json"
    law.write_text("{}")
    new = points / "new.json"
    for arguments, said in [
        (["fit", "scaling", "--points", points / "P.csv", "--out", law], "is not a law written by this version"),
        (["fit", "scaling", "--points", points / "bad.csv", "--out", new], "bad.csv, line 3, column 'loss' is '-3'"),
        (["fit", "scaling", "--points", points / "no.csv", "--out", new], "no.csv: No such file"),
        (
            ["fit", "scaling", "--points", points / "P.csv", "--form", "x", "--out", new],
            "unknown form 'x'; choose one of auto",
        ),
        (
            ["fit", "scaling", "--points", points / "P.csv", "--out", points],
            "is a folder; give the name of a file in it",
        ),
        (["fit", "anneal", "--curves", points / "none", "--out", new], "none is not a folder"),
        (["predict-law", law, "--at", points / "near.csv", "--out", points / "o.csv"], "law.json is not a law file"),
        (
            ["predict-law", points / "P.csv", "--at", points / "near.csv", "--out", points / "o.csv"],
            "P.csv is not a law file; give a file that 'armillary fit' wrote",
        ),
        (
            ["predict-law", law, "--at", points / "near.csv", "--out", points / "near.csv"],
            "near.csv is an input file and would be overwritten; give another name",
        ),
        (["reproduce", "nothing"], "choose one of regmix, chinchilla"),
        (
            ["reproduce", "chinchilla", "--data", points],
            "chinchilla.csv is missing; the data are published at github",
        ),
    ]:
        done = call(*arguments)
        assert done.returncode == 2 and said in done.stderr, (arguments, done.stderr)
    assert law.read_text() == "{}"  # a failed fit costs nothing that was there


def test_train_refuses_what_belongs_to_a_recipe(call):
    large = Path(__file__).parents[2] / "examples" / "telechat2-115b.yaml"
    for file, option, value in ((large, "--budget", "5m"), (large, "--workers", "2")):
        done = call("train", str(file), option, value)
        assert done.returncode == 2
        assert f"{option} does not apply" in done.stderr and done.stdout == ""


def test_verify_ends_with_1_where_something_is_damaged(call, recipe, tmp_path):
    law = tmp_path / "law.json"
    law.write_text('{"format": "armillary-law", "kind"')
    done = call("verify", law)
    assert done.returncode == 1 and done.stdout.startswith(f"{law}: ") and len(done.stdout.splitlines()) == 1
    done = call("verify", law, "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["problems"][0]["file"] == str(law)
    assert call("verify", recipe).returncode == 0
    done = call("verify", tmp_path / "nowhere")
    assert done.returncode == 2 and "no such file or folder" in done.stderr


def test_store_backup_writes_one_file_and_never_over_another(call, recipe, tmp_path):
    done = call("store", "backup", recipe, "--to", tmp_path / "b.sqlite")
    assert done.returncode == 2 and "has no database" in done.stderr and not (tmp_path / "tiny").exists()
    from armillary.store import Store

    Store(tmp_path / "tiny" / "store").close()
    done = call("store", "backup", recipe, "--to", tmp_path / "b.sqlite", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == {"backup": str(tmp_path / "b.sqlite")}
    copy = (tmp_path / "b.sqlite").read_bytes()
    assert copy.startswith(b"SQLite format 3")
    done = call("store", "backup", recipe, "--to", tmp_path / "b.sqlite")
    assert done.returncode == 2 and (tmp_path / "b.sqlite").read_bytes() == copy
    url = f"sqlite:///{tmp_path / 'tiny' / 'store' / 'store.sqlite'}"
    done = call("store", "backup", recipe, "--out", tmp_path / "other", "--database", url, "--to", tmp_path / "n" / "c")
    assert done.returncode == 0 and (tmp_path / "n" / "c").exists()
    assert call("verify", tmp_path / "n" / "c").returncode == 0


def test_a_folder_in_the_results_stands_for_them(call, recipe, tmp_path):
    from armillary.recipe import keep_recipe, load_recipe
    from armillary.store import Store

    place = tmp_path / "tiny"
    Store(place / "store").close()
    keep_recipe(load_recipe(recipe), place)
    for folder in (place, place / "store"):
        done = call("runs", folder, "--json")
        assert done.returncode == 0 and json.loads(done.stdout) == []
    done = call("store", "backup", place / "store", "--to", tmp_path / "b.sqlite")
    assert done.returncode == 0 and (tmp_path / "b.sqlite").exists()


@pytest.mark.parametrize("verb", [["corpus"], ["study", "mixture"], ["report"]])
def test_a_missing_source_leaves_no_folder_behind(verb, call, recipe, tiny_texts, tmp_path):
    recipe.write_text(recipe.read_text().replace(str(tiny_texts["sky"]), str(tmp_path / "nowhere.txt")))
    done = call(*verb, recipe, "--out", tmp_path / "new" / "out", "--workers", 1)
    assert done.returncode == 2 and "nowhere.txt" in done.stderr
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept").mkdir()
    call(*verb, recipe, "--out", tmp_path / "kept", "--workers", 1)
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize("verb", [["record", "law.json", "--at", "at.csv"], ["judge", "exam"]])
def test_a_forecast_makes_no_store(call, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exam").mkdir()
    write_examination(tmp_path / "exam", Examination((), {}))
    done = call("forecast", *verb, "--run", "r", "--task", "mmlu", "--store", "none")
    assert done.returncode == 2 and "none: no store.sqlite; give the folder of a store" in done.stderr
    assert not (tmp_path / "none").exists()
