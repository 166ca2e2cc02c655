"""Files of predictions: what is reported of bad ones, and the verb that scores them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from armillary.cli.verbs import app
from armillary.evaluate.contests import CONTESTS, contest_named, score_file
from armillary.recipe import UsageError

GOLD = {
    "space2024": [
        {
            "qid": f"1-dev-s-{place}",
            "text": "猫在桌上。",
            "question": "()在桌上。",
            "option": {"A": "猫", "B": "狗", "C": "桌", "D": "以上选项都不是"},
            "answer": ["A"],
        }
        for place in (1, 2)
    ],
    "ched": [
        {
            "sen_id": place,
            "doc_id": 32041,
            "text": "壬寅，大赦。",
            "events": [{"id": 1, "trigger": "赦", "label": "法律-赦免", "start_offset": 4, "end_offset": 5}],
        }
        for place in (1, 2)
    ],
    "nlpcc2024-5": [
        {
            "id": f"e{place}",
            "title": "谈水",
            "sentences": [{"text": "水滴石穿。", "coarse": "evidence", "fine": "proverb"}],
        }
        for place in (1, 2)
    ],
}
OTHERS = {"coarse": "others", "fine": "others"}
BAD = {
    "space2024": [
        ('{"qid": "1-dev-s-1"}', ":1: answer: is missing"),
        ('{"qid": "1-dev-s-1", "answer": ["E"]}', ":1: answer: unknown option 'E'"),
        ('{"qid": "1-dev-s-1", "answer": 3}', ":1: answer: must be a list of options"),
        ('{"qid": 7, "answer": ["A"]}', ":1: qid: must be a non-empty text"),
        ('{"qid": "9-dev-s-1", "answer": ["A"]}', ":1: item 9-dev-s-1 is not among the 2 items"),
        (
            '{"qid": "1-dev-s-1", "answer": ["A"]}\n\n{"qid": "1-dev-s-1", "answer": "A"}',
            ":3: item 1-dev-s-1 was already answered in line 1",
        ),
    ],
    "ched": [
        (
            '{"sen_id": 1, "events": [{"trigger": "赦", "label": "法律-赦"}]}',
            ':1: events[0].label: unknown label "法律-赦"; the nearest is 法律-赦免',
        ),
        ('{"sen_id": 1, "events": [{"label": "法律-赦免"}]}', ":1: events[0].trigger: is missing"),
        ('{"sen_id": true, "events": []}', ":1: sen_id: must be a whole number"),
        ('{"sen_id": 1, "events": "赦"}', ":1: events: must be a list of objects"),
    ],
    "nlpcc2024-5": [
        ('{"id": "e1", "sentences": [{"coarse": "evidence", "fine": "x"}]}', ":1: sentences[0].fine: unknown label"),
        ('{"id": "e1", "sentences": [{"coarse": "evidence"}]}', ":1: sentences[0].fine: is missing"),
        ('{"id": "e1", "sentences": []}', ":1: sentences: has no sentence"),
        (json.dumps({"id": "e1", "sentences": [OTHERS, OTHERS]}), ":1: item e1:1 is not among the 2 items"),
    ],
}
FOREIGN = [
    ("", "the file is empty"),
    ("[1]", ":1: a JSON list"),
    ("not json", ":1: not JSON in UTF-8"),
    (b"\xff\xfe\n", ":1: not JSON in UTF-8"),
    ("[" * 100_000, ":1: not JSON in UTF-8"),
    ("\ufeff{}", ":1: "),
]


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "line", "expected"), [(name, *case) for name in BAD for case in BAD[name]])
def test_bad_predictions_are_named_by_line_and_field(name: str, line: str, expected: str, tmp_path: Path) -> None:
    gold = written(tmp_path / "gold.jsonl", GOLD[name])
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text(line, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        score_file(CONTESTS[name], predictions, gold)
    assert f"{predictions}{expected}" in str(caught.value)


@pytest.mark.parametrize(("content", "expected"), FOREIGN, ids=range(len(FOREIGN)))
@pytest.mark.parametrize("name", sorted(CONTESTS))
def test_a_foreign_file_is_refused(name: str, content: str | bytes, expected: str, tmp_path: Path) -> None:
    gold = written(tmp_path / "gold.jsonl", GOLD[name])
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        score_file(CONTESTS[name], predictions, gold)
    assert expected in str(caught.value)


def test_all_faults_of_a_file_are_reported_together(tmp_path: Path) -> None:
    gold = written(tmp_path / "gold.jsonl", GOLD["ched"])
    rows = [{"sen_id": 1, "events": [{"trigger": "赦", "label": f"x{i}"}]} for i in range(30)]
    with pytest.raises(UsageError, match=r"(?s):1: .*:10: .*and 20 more"):
        score_file(CONTESTS["ched"], written(tmp_path / "predictions.jsonl", rows), gold)


@pytest.mark.parametrize("name", sorted(CONTESTS))
@pytest.mark.parametrize("change", ["no text", "twice", "no answer"])
def test_bad_items_are_named(name: str, change: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [dict(row) for row in GOLD[name]]
    answer = {"space2024": "answer", "ched": "events", "nlpcc2024-5": "sentences"}[name]
    if change == "no text":
        rows[1].pop("title" if name == "nlpcc2024-5" else "text")
    elif change == "twice":
        rows.append(rows[0])
    else:
        del rows[1][answer]
    with pytest.raises(
        UsageError, match=":3: item .* is already in line 1" if change == "twice" else ":2: .* is missing"
    ):
        CONTESTS[name].items(written(tmp_path / "gold.jsonl", rows))


@pytest.mark.parametrize("name", sorted(CONTESTS))
def test_the_verb_scores_a_file_and_says_what_is_missing(name: str, tmp_path: Path) -> None:
    gold = written(tmp_path / "gold.jsonl", GOLD[name])
    predictions = written(tmp_path / "predictions.jsonl", GOLD[name][:1])
    command = ["evaluate", "contest", name, "--score", str(predictions), "--gold", str(gold)]
    shown = CliRunner().invoke(app, [*command, "--json"])
    assert shown.exit_code == 0, shown.output
    assert "1 of 2 items have no prediction" in shown.stderr
    found = json.loads(shown.stdout)
    assert found["items"] == 2
    assert len(found["missing"]) == 1
    main = next(score for score in found["scores"] if score["metric"] == CONTESTS[name].main_metric)
    assert main["value"] == pytest.approx(0.6 if name == "ched" else 0.5)
    assert main["low"] < 0.5 < main["high"]
    assert CONTESTS[name].title in CliRunner().invoke(app, command).stdout


def test_an_unknown_contest_is_named() -> None:
    with pytest.raises(UsageError, match="known are space2024, ched, nlpcc2024-5"):
        contest_named("space")
