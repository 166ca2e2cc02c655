"""The section on what a model was taught: what it says against the data, in both languages, and what is left out."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from armillary.post.problems import family_names, family_of
from armillary.recipe import ArmillaryError
from armillary.report import (
    Forgetting,
    Question,
    QuestionSet,
    ReportData,
    Talk,
    TaughtGain,
    TaughtScore,
    TeachingPage,
    TeachingPart,
    charts,
    write_report,
    write_teaching,
)
from armillary.report.text import Language, Words

_TYPES = {"domain": {"math": 4}, "family": {"sum": 4}, "level": {"1": 4}, "language": {"zh": 2, "en": 2}}
_DIVERSITY = {
    "items": 4,
    "sampled": 4,
    "distinct": {"1": 0.5, "2": 0.75},
    "spread": 0.9,
    "coverage": 1.0,
    "effective": 3.5,
    "types": _TYPES,
}
PART = TeachingPart(
    models=["base", "sft"],
    taken="sft",
    questions=[
        QuestionSet("questions", 3996, 0.999, 0.997, 1.0, 4000),
        QuestionSet("held-out", 200, 1.0, 0.98, 1.0, 200),
    ],
    scores=[
        TaughtScore("base", "held-out", None, 200, 0.005, 0.0, 0.03),
        TaughtScore("base", "harder", None, 60, 0.0, 0.0, 0.06),
        TaughtScore("sft", "held-out", None, 200, 0.8, 0.74, 0.85, "base", 0.795, 0.731, 0.851, 1e-20),
        TaughtScore("sft", "held-out", "sum", 100, 0.9, 0.82, 0.95),
        TaughtScore("sft", "harder", None, 60, 0.15, 0.08, 0.26, "base", 0.15, 0.05, 0.24, 0.004),
    ],
    families=["sum", "backwards"],
    gain=TaughtGain(
        [500, 1000, 2000], [0.2, 0.45, 0.66], 3996, 0.031, 0.8, "2026-11-27T10:00:00", 0.79, 0.68, 0.88, True
    ),
    forgetting=[Forgetting("code", 3.1, 3.6), Forgetting("target", 4.0, 4.25)],
    talks=[
        Talk("3 + <b>4</b>?", "7", "and the \x07sea", "The answer is 7.", True),
        Talk("三加四？", "7", "", "答案是8。", False),
    ],
    diversity={"questions": _DIVERSITY, "held-out": _DIVERSITY},
)


_SAID: dict[Language, tuple[str, ...]] = {
    "en": (
        "fine-tuned on 3,996 questions",
        "families: sum, backwards",
        "+79.5 [+73.1, +85.1] points on the same 200",
        "79.0% , 90% interval [68.0, 88.0]",
        "The measured score is 80.0% : inside",
        "right for at most 3.1% of the held-out questions",
        "Forgetting",
        "+0.250",
        "✗ wrong; 7 is right",
    ),
    "zh": (
        "在 3,996 道题 上做了监督微调",
        "题型： sum、倒序",
        "+79.5 [+73.1, +85.1] 个百分点",
        "预测用全部题目训练后的留出题正确率： 79.0%",
        "遗忘",
        "✗ 错误；正确答案是 7",
        "题目的多样性",
    ),
}


def text_of(path: Path) -> str:
    html = re.sub(r"<(style|svg)[^>]*>.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def page(folder: Path, part: TeachingPart, language: Language = "en") -> str:
    path = folder / f"{language}.html"
    write_teaching(TeachingPage("lesson", part, "2026-11-27T10:05:00", "0.1"), path, language)
    return text_of(path)


@pytest.mark.parametrize(("language", "said"), _SAID.items())
def test_the_sentences_say_what_the_data_says(language: Language, said: tuple[str, ...], tmp_path: Path) -> None:
    text = page(tmp_path, PART, language)
    for sentence in said:
        assert sentence in text
    assert "3 + <b>4</b>?" in text and "\x07" not in text


def test_a_chinese_page_has_chinese_names_for_the_families_and_subjects_that_are_drawn(tmp_path: Path) -> None:
    words = Words("zh")
    names = {*family_names(), *(family_of(name).domain for name in family_names())}
    assert [name for name in names if words.task(name).isascii()] == []
    assert words.task("gym:chain_sum") == "gym:chain_sum"
    types = {**_TYPES, "family": {"sorting": 3, "travel": 1}}
    scores = [*PART.scores, TaughtScore("sft", "held-out", "sorting", 100, 0.9, 0.82, 0.95)]
    diversity = {"questions": {**_DIVERSITY, "types": types}}
    text = page(tmp_path, replace(PART, families=["sorting", "travel"], scores=scores, diversity=diversity), "zh")
    assert "排序、行程" in text and "数学" in text
    assert not [word for word in ("sorting", "travel", "math", "zh", "en") if word in text.split()]


def test_a_mark_at_an_end_of_the_scale_is_whole_and_touches_no_label() -> None:
    """At 0 % and at 100 %: half of a mark was cut off, or lay on the labels beside the axis."""
    assert PART.gain is not None
    scores = [replace(row, value=float(row.model == "sft")) for row in PART.scores]
    gain = replace(PART.gain, scores=[0.0, 0.5, 1.0])
    drawn = [(charts.taught, (replace(PART, scores=scores),), 0), (charts.taught_gain, (gain,), 1)]
    for draw, data, axis in drawn:
        picture = draw.__wrapped__(*data, Words("en"))  # type: ignore[attr-defined]
        picture.draw_without_rendering()
        (axes,) = picture.axes
        low, high = axes.bbox.get_points()[:, axis]
        marks = [line for line in axes.lines if line.get_marker() != "None" and len(line.get_xdata())]
        ends = {float(value) for line in marks for value in line.get_xydata()[:, axis]}
        assert {0.0, 1.0} <= ends
        for line in marks:
            places = axes.transData.transform(line.get_xydata())[:, axis]
            radius = line.get_markersize() / 2
            assert low <= min(places) - radius and max(places) + radius <= high


def test_the_bars_of_a_set_of_questions_have_the_colour_beside_its_name(tmp_path: Path) -> None:
    write_teaching(TeachingPage("lesson", PART, "2026-11-27T10:05:00", "0.1"), tmp_path / "en.html")
    html = (tmp_path / "en.html").read_text(encoding="utf-8")
    section = html[html.index('id="diversity"') :]
    heads = re.findall(r'<svg class="swatch".*?fill="var\((--c\d)\)".*?</svg>\s*([^<]+)</th>', section)
    assert heads[:2] == [("--c1", "training questions"), ("--c2", "held-out questions")]
    bars = re.findall(r'role="img"[^>]*>.*?fill="var\((--c\d)\)"', section)
    assert bars[:2] == ["--c1", "--c2"]


def test_the_report_of_a_recipe_has_the_same_section(tmp_path: Path) -> None:
    data = ReportData("r", Question({"a": 1.0}, "m"), "2026-01-01T00:00:00", "0")
    write_report(data, tmp_path / "without.html")
    write_report(replace(data, teaching=PART), tmp_path / "with.html")
    without, with_ = ((tmp_path / name).read_text() for name in ("without.html", "with.html"))
    assert 'id="teaching"' not in without and 'href="#teaching"' not in without
    assert with_.count('id="teaching"') == with_.count('href="#teaching"') == 1
    assert with_.count('id="diversity"') == with_.count('href="#diversity"') == 1


def test_what_there_is_not_is_not_shown(tmp_path: Path) -> None:
    scores = [row for row in PART.scores if row.model == "base"]
    bare = replace(
        PART, models=["base", "sft"], taken="base", scores=scores, gain=None, forgetting=[], talks=[], diversity={}
    )
    text = page(tmp_path, bare)
    assert "so the base is kept" in text
    for absent in ("predicted", "forgot", "Two conversations", "Diversity"):
        assert absent not in text


def test_a_gain_that_cannot_be_predicted_says_why(tmp_path: Path) -> None:
    assert PART.gain is not None
    unknown = replace(PART.gain, predicted=None, low=None, high=None, inside=None, reason="at chance (0.25)")
    text = page(tmp_path, replace(PART, gain=unknown))
    assert "could not be predicted: at chance (0.25)" in text and "The measured score is 80.0%" in text
    outside = page(tmp_path, replace(PART, gain=replace(PART.gain, measured=0.9, inside=False)))
    assert "The measured score is 90.0% : outside" in outside


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "en.html").mkdir()
    with pytest.raises(ArmillaryError, match=r"en\.html: the report cannot be written"):
        page(tmp_path, PART)
