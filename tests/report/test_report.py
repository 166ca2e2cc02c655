"""The report as a reader meets it: all numbers there, nothing loaded from elsewhere, no name that breaks the page."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import string
import subprocess
import sys
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.laws import SCALING_FORMS
from armillary.recipe import ArmillaryError
from armillary.report import (
    AnnealPart,
    AnnealRow,
    DifferenceRow,
    DomainFit,
    DomainRow,
    LadderPart,
    LossCurve,
    Note,
    PredictionPart,
    Question,
    ReportData,
    Sample,
    ScoreRow,
    charts,
    write_report,
)
from armillary.report import format as fmt
from armillary.report.text import STRINGS, Words

STUDIES = ["mixture", "mixture-confirm", "anneal", "lr", "lr-confirm", "ladder", "target"]
VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """What a browser would read: tags in balance, attributes, and text without tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.rows: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open[-1:] == ["th"]:
            self.rows.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def render(data: ReportData, folder: Path, language: str = "en") -> str:
    path = folder / "report.html"
    write_report(data, path, language)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def score(low: float | None, high: float | None) -> ScoreRow:
    paired = (0.6, 0.5, 0.7, 0.05, low, high, 0.5) if low is not None and high is not None else ()
    return ScoreRow("total", 99, 0.65, 0.6, 0.7, *paired)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (score(0.01, 0.1), "is significantly better than the same model on the natural mixture"),
        (score(-0.1, -0.01), "is significantly worse than the same model on the natural mixture"),
        (score(-0.1, 0.1), "does not differ significantly from the same model"),
        (score(None, None), "so there is no comparison"),
    ],
)
def test_an_examination_says_what_its_interval_says(row: ScoreRow, said: str, tmp_path: Path) -> None:
    page = Page(render(bare(scores=[row]), tmp_path))
    assert said in page.text
    assert ("p =" in page.text) == (row.p is not None)


def test_the_comparison_is_that_of_the_target_where_it_is_a_row(tmp_path: Path) -> None:
    rows = [score(-0.1, 0.1), dataclasses.replace(score(0.01, 0.1), subset="target", n=71)]
    page = Page(render(bare(scores=rows), tmp_path))
    assert "answers 65.0% of 99 items right, significantly better than chance" in page.text
    assert "is significantly better than the same model" in page.text and "the same 71 items" in page.text
    assert "weighted as in the target loss" in page.text and {"total", "target"} <= set(page.rows)


@pytest.mark.parametrize(
    ("low", "said"), [(0.55, ", significantly better than chance"), (0.45, "not significantly better than chance")]
)
def test_a_score_says_whether_it_is_above_chance(low: float, said: str, tmp_path: Path) -> None:
    row = dataclasses.replace(score(None, None), low=low)
    assert said in Page(render(bare(scores=[row]), tmp_path)).text


def test_a_domain_with_the_name_of_a_part_of_the_report_keeps_it(tmp_path: Path) -> None:
    rows = [score(0.01, 0.1), dataclasses.replace(score(0.01, 0.1), subset="code")]
    page = Page(render(bare(scores=rows), tmp_path))
    assert "code version" not in page.text
    assert {"total", "code"} <= set(page.rows)


@pytest.fixture(scope="module", params=["en", "zh"])
def html(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, full_data: ReportData) -> str:
    return render(full_data, tmp_path_factory.mktemp("report"), request.param)


def bare(**parts: object) -> ReportData:
    return ReportData("r", Question({"a": 1.0}, "m"), "2026-01-01T00:00:00", "0", **parts)  # type: ignore[arg-type]


def numbers_to_show(data: ReportData) -> set[str]:
    """Every figure of the data, written as a reader expects it."""
    losses: list[float] = []
    counts: list[float] = []
    shares: list[float] = []
    names: list[str] = []
    counts += [data.question.tokens, data.question.parameters]
    for row in data.corpus:
        counts += [row.validation_tokens, row.documents, row.duplicates] + ([row.train_tokens] if row.trained else [])
        names += [row.name, row.source, row.licence, f"{row.bytes_per_token:.2f}"]
    mixture = data.mixture
    shares += [w for run in mixture.design for w in run]
    shares += [*mixture.natural.values(), *mixture.uniform.values(), *mixture.found.values()]
    names += [f"{passes:.2f}" for passes in data.recipe.passes.values()]
    shares += [weight for phase in data.recipe.phases for weight in phase.weights.values()]
    counts += [step for phase in data.recipe.phases for step in (phase.first, phase.last)]
    losses += [*mixture.target_fit.predicted, *mixture.target_fit.measured]
    for fit in [*mixture.fits, mixture.target_fit]:
        losses.append(fit.rmse)
        names.append(f"{fit.spearman:.2f}")
    for row in mixture.candidates:
        shares += row.weights.values()
        losses += [row.predicted, row.low, row.high, *row.measured]
    losses += [loss for row in data.anneal.branches for loss in row.losses]
    for point in data.ladder.points:
        counts += [point.depth, point.parameters, point.tokens]
        losses += [point.target, *point.losses.values()]
    names += [f"{value:.4g}" for law in data.ladder.laws for value in law.parameters.values()]
    for row in [*data.ladder.holdout, *data.ladder.families, *data.prediction.rows, data.prediction.target]:
        losses += [getattr(row, f) for f in ("predicted", "low", "high", "measured") if hasattr(row, f)]
    for arm in data.arms:
        losses += [arm.mean, arm.low, arm.high, *arm.losses, *arm.domain_losses.values(), *arm.bits_per_byte.values()]
    for row in data.cost:
        counts.append(row.runs)
        if row.flops:
            names.append(f"{row.flops:.2e}".split("e")[0] + " × 10")
    for row in data.scores:
        counts.append(row.n)
        names += [f"{100 * v:.1f}%" for v in (row.value, row.reference)]
        names += [f"{100 * v:.1f}" for v in (row.low, row.high, row.reference_low, row.reference_high)]
        names += [
            f"{100 * v:+.1f}".replace("-", "−") for v in (row.difference, row.difference_low, row.difference_high)
        ]
    names += ["0.011", "0.75", "< 0.001"]
    names += [row.command for row in data.reproduce] + [row.id for row in data.lineage]
    names += [" ".join((sample.prompt + sample.text).split()) for sample in data.samples]
    names += [note.detail for note in data.notes] + [row.cause for row in data.failures]
    names += [f"{math.exp(v):.3g}" for row in data.differences for v in (row.mean, row.low, row.high)]
    names += [data.prediction.chain.head, "1.84", f"{100 / 1.84:.1f}%", f"{100 / 2.13:.1f}%", f"{100 / 1.61:.1f}%"]
    differences = [v for row in [data.mixture.choice] for v in (row.difference, row.low, row.high)]
    differences += [v for row in data.differences for v in (row.mean, row.low, row.high)]
    return {
        *(f"{value:.3f}" for value in losses),
        *(f"{value:,}" for value in counts),
        *(f"{100 * value:.1f}%" for value in shares),
        *(f"{value:+.3f}".replace("-", "−") for value in differences),
        *names,
    }


def test_every_number_is_shown(html: str, full_data: ReportData) -> None:
    text = Page(html).text
    assert [figure for figure in numbers_to_show(full_data) if figure not in text] == []


def test_totals_are_sums_of_the_stages(html: str, full_data: ReportData) -> None:
    text = Page(html).text
    assert f"{sum(row.runs for row in full_data.cost)}" in text
    seconds = round(sum(row.wall_s for row in full_data.cost))
    assert re.search(rf"{seconds // 60} (min|分) {seconds % 60:02d} (s|秒)", text)


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "form"}
    links = [value for _, key, value in page.attributes if key in {"src", "href", "action", "xlink:href", "data"}]
    assert links and all(link.startswith("#") for link in links)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert all(reference.startswith("#") for reference in re.findall(r"url\(\s*[\"']?(\S)", html))
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]


def test_ids_are_unique_and_every_link_leads_somewhere(html: str) -> None:
    page = Page(html)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, key, value in page.attributes if key == "href"}
    targets |= set(re.findall(r"url\(#([^)]*)\)", html))
    assert targets <= set(ids)


def test_charts_hold_text_and_follow_the_pages_colours(html: str) -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", html)
    assert {"中文新闻", "三国演义", "encyclopedia"} <= set(texts)
    assert "#0102" not in html  # a placeholder that no variable replaced
    used = set(re.findall(r"var\((--\w+)\)", html))
    assert used <= set(re.findall(r"(--\w+):", html))


def test_languages_have_the_same_keys_and_places_to_fill() -> None:
    def places(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, (english, chinese) in STRINGS.items():
        assert places(english) == places(chinese), key
        assert english and (chinese or key == "gap"), key


# Words of the field that Chinese pages keep, units, and the program's name.
KEPT = {"FLOPs", "RMSE", "UTC", "Armillary", "nats", "token", "armillary", "Chinchilla", "ρ"}


def test_chinese_report_has_no_english_left(tmp_path: Path, full_data: ReportData) -> None:
    """Every ASCII word of the page is a name or text of the data, code, or kept on purpose."""
    html = render(full_data, tmp_path, "zh")
    given = " ".join(
        str(value)
        for row in [full_data.question, *full_data.corpus, *full_data.samples, *full_data.ladder.points]
        for value in (*vars(row).values(), *(getattr(row, "target", {}) or {} if row is full_data.question else ()))
    )
    given += f" {full_data.name} {full_data.code_version} {full_data.notes[9].subject} runs metrics parquet"
    text = re.sub(r"<(style|code)[^>]*>.*?</\1>", " ", html, flags=re.DOTALL)
    words = re.findall(r"[A-Za-z]{2,}", unescape(re.sub(r"<[^>]*>", " ", text)))
    assert sorted(set(words) - KEPT - set(re.findall(r"[A-Za-z]{2,}", given))) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_name_that_the_studies_give_has_a_word(language: str) -> None:
    words = Words(language)  # type: ignore[arg-type]
    forms = [*SCALING_FORMS, "linear", "effective-data", "gaussian-process", "exponential", "lightgbm"]
    names = [*forms, "cosine", "1-sqrt", "sqrt", "failed", "refused", "diverged", *STUDIES]
    assert [name for name in names if f"name_{name}" not in STRINGS and language == "zh"] == []
    assert all(words.name(name) for name in names)


@pytest.mark.parametrize(("shapes", "powers"), [(1, 1), (3, 1), (2, 2), (3, 3)])
def test_a_legend_lies_within_its_chart(shapes: int, powers: int) -> None:
    """Outside, text is drawn and the marks beside it are not."""
    branches = [
        AnnealRow(share, shape, [3.0 + share], power=1 + power / 2)
        for share in (0.1, 0.4)
        for shape in ("linear", "1-sqrt", "cosine")[:shapes]
        for power in range(powers)
    ]
    part = AnnealPart(branches, chosen=0, significant=False, reference=0)
    picture = charts.anneal.__wrapped__(part, Words("en"))  # type: ignore[attr-defined]
    picture.draw_without_rendering()
    legends = [legend.get_window_extent() for axes in picture.axes if (legend := axes.get_legend())]
    assert len(legends) == 1
    assert "…" not in "".join(text.get_text() for axes in picture.axes for text in axes.get_legend().get_texts())
    assert all(box.y1 <= picture.bbox.y1 and box.x1 <= picture.bbox.x1 for box in legends)
    chinese = charts.anneal.__wrapped__(part, Words("zh"))  # type: ignore[attr-defined]
    assert ", " not in "".join(text.get_text() for axes in chinese.axes for text in axes.get_legend().get_texts())


@pytest.mark.parametrize(
    ("value", "shown"), [(3.14159, "3.14"), (0.1, "0.10"), (0.00234, "0.0023"), (4e-5, "0.00004"), (0.0, "0.00")]
)
def test_few_passes_are_shown_in_two_digits(value: float, shown: str) -> None:
    assert fmt.passes(value) == shown


def test_same_data_same_bytes_in_another_process(tmp_path: Path, full_data: ReportData) -> None:
    here = render(full_data, tmp_path)
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import conftest;"
        "from armillary.report import write_report;"
        "write_report(conftest.full_report(), pathlib.Path(sys.argv[2]));"
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "other.html")],
        env={**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Shanghai"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == here
    assert out.stdout.split() == ["False", "False"]
    assert "Warning" not in out.stderr


PARTS = [
    "corpus",
    "mixture",
    "anneal",
    "lr",
    "ladder",
    "prediction",
    "arms",
    "curves",
    "samples",
    "failures",
    "cost",
    "reproduce",
    "lineage",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_shown_and_the_rest_left_out(part: str, tmp_path: Path, full_data: ReportData) -> None:
    page = Page(render(bare(**{part: getattr(full_data, part)}), tmp_path))
    shown = {value for tag, key, value in page.attributes if tag == "section" and key == "id"}
    assert shown == {"verdict", "question", part}
    entries = {value[1:] for tag, key, value in page.attributes if tag == "a" and key == "href"}
    assert entries == shown


def test_parts_that_are_half_there(tmp_path: Path, full_data: ReportData) -> None:
    """A study interrupted or diverged: one branch, no law yet, no measurement, a loss that is not a number."""
    nan = float("nan")
    mixture = full_data.mixture
    assert mixture is not None and full_data.prediction is not None
    text = Page(
        render(
            bare(
                mixture=dataclasses.replace(
                    mixture,
                    choice=None,
                    target_fit=None,
                    fits=[DomainFit("a", [1.0, nan], [nan, 2.0], nan, nan)],
                    candidates=[dataclasses.replace(mixture.candidates[0], measured=[])],
                ),
                anneal=AnnealPart([AnnealRow(0.2, "linear", [3.0])], chosen=0, significant=False, reference=0),
                ladder=LadderPart(points=[], laws=[]),
                prediction=PredictionPart(
                    "2026-01-01T00:00:00Z",
                    None,
                    [dataclasses.replace(row, measured=None, inside=None) for row in full_data.prediction.rows],
                ),
                arms=[dataclasses.replace(full_data.arms[0], domain_losses={}, bits_per_byte={})],
                curves=[LossCurve("train", [1.0, 2.0], [nan, nan])],
            ),
            tmp_path,
        )
    ).text
    assert "the target run has not begun" in text
    assert "not measured yet" in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.05, -0.01, "the found mixture is significantly better than the natural one"),
        (0.01, 0.05, "the found mixture is significantly worse than the natural one"),
        (-0.01, 0.05, "the found and the natural mixture do not differ significantly"),
    ],
)
def test_says_honestly_whether_the_found_mixture_is_better(low: float, high: float, said: str, tmp_path: Path) -> None:
    rows = [DifferenceRow("found", "natural", 3, (low + high) / 2, low, high)]
    text = Page(render(bare(differences=rows), tmp_path)).text
    phrases = ["significantly better than", "significantly worse than", "do not differ significantly"]
    assert said in text
    assert sum(phrase in text for phrase in phrases) == 1


def test_a_prediction_recorded_after_the_start_is_called_none(tmp_path: Path) -> None:
    early = PredictionPart("2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z", [])
    assert "30.0 s later" in Page(render(bare(prediction=early), tmp_path)).text
    # the same clock time, but an hour west: recorded later than the start
    late = PredictionPart("2026-01-01T00:00:00-01:00", "2026-01-01T00:00:30Z", [])
    assert "this is not a prediction" in Page(render(bare(prediction=late), tmp_path)).text


def test_hostile_names_stay_text_in_page_and_charts(tmp_path: Path, full_data: ReportData) -> None:
    evil = '<script>alert("x")</script> $\\frac{1}{2}$ {0} {{ t }} --><!-- & \n</svg></style>'
    evil_short = '<script>"&$x_{$'

    def rename(name: str) -> str:
        return evil_short if name == "encyclopedia" else evil if name == "code" else name

    mixture, prediction = full_data.mixture, full_data.prediction
    assert mixture is not None and prediction is not None
    weights = {rename(name): weight for name, weight in mixture.found.items()}
    data = dataclasses.replace(
        full_data,
        name=evil,
        mixture=dataclasses.replace(
            mixture,
            domains=[rename(name) for name in mixture.domains],
            fits=[dataclasses.replace(fit, domain=rename(fit.domain), form=evil) for fit in mixture.fits],
            found=weights,
        ),
        anneal=None,
        prediction=dataclasses.replace(
            prediction, rows=[dataclasses.replace(row, domain=rename(row.domain)) for row in prediction.rows]
        ),
        curves=[LossCurve(evil_short, [1.0, 2.0], [2.0, 1.0])],
        samples=[Sample(evil, "\x00\x1b[31m\ud800" + evil)],
        notes=[Note("domain", evil, evil, 2)],
    )
    html = render(data, tmp_path)
    page = Page(html)
    assert "<script" not in html
    assert " ".join(evil.split()) in page.text
    assert evil_short in {unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", html)}
    assert not re.search("[\x00-\x08\x1b]", html)


@settings(max_examples=60, deadline=None)
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_name_reads_back_as_it_was(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    row = DomainRow(name, name, name, True, 1, 1, 1, 0, 1.0)
    page = Page(render(bare(corpus=[row]), tmp_path_factory.mktemp("name")))
    assert name in page.rows


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArmillaryError, match=r"report\.html.*No space left"):
        write_report(bare(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_replaces_the_old_one_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(bare(), path)
    first = path.read_text()
    write_report(bare(notes=[Note("failures", "mixture", count=1)]), path)
    assert path.read_text() != first
    assert list(path.parent.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArmillaryError, match=re.escape(str(tmp_path))):
        write_report(bare(), tmp_path)
    assert list(tmp_path.iterdir()) == []
