"""Leaderboards: ranks separate only what differs on the same items, and nothing is compared silently."""

import json
import random
import re
from html.parser import HTMLParser

import pytest

from armillary.evaluate.leaderboard import rank, read_results
from armillary.evaluate.results import Examination, Item, write_examination
from armillary.recipe import DamagedFileError, UsageError
from armillary.report.leaderboard import write_leaderboard


def _examination(scores, name="model", task="sums", settings="s", passage=1, metric="exact_match"):
    """One item per score, in passages of ``passage``; an item without a score is left out."""
    items = tuple(
        Item(f"item{i}", task, f"passage{i // passage}", settings, 1, ("1",), 1, None, {metric: float(score)})
        for i, score in enumerate(scores)
        if score is not None
    )
    return Examination((), {task: items}, {"model": name})


def _answers(share, count=300, seed=0):
    """0-1 scores in which a higher share answers all items of a lower one: pairs differ, noise is shared."""
    order = random.Random(seed).sample(range(count), count)
    return [float(order[i] < share * count) for i in range(count)]


@pytest.fixture
def board():
    shares = {"strong": 0.70, "close": 0.695, "middle": 0.60, "weak": 0.50}
    return rank({name: _examination(_answers(share)) for name, share in shares.items()})


def test_what_nothing_separates_shares_a_rank(board):
    (table,) = board.tables
    assert [(one.model, one.rank) for one in table.standings] == [
        ("strong", 1),
        ("close", 1),
        ("middle", 3),
        ("weak", 4),
    ]
    assert table.standings[0].better_than == ("middle", "weak")
    assert table.standings[0].score.value == pytest.approx(0.7)
    assert {(pair.first, pair.second) for pair in table.pairs if not pair.significant} == {("strong", "close")}


def test_many_models_are_corrected_for():
    rng = random.Random(1)
    ranked = 0
    for _ in range(8):
        models = {f"m{i}": _examination([rng.random() < 0.5 for _ in range(60)]) for i in range(7)}
        ranked += any(one.rank > 1 for one in rank(models).tables[0].standings)
    assert ranked <= 2


def test_a_passage_is_one_observation():
    better = [0.0] * 40 + [1.0] * 20
    alone = rank({"a": _examination([0.0] * 60), "b": _examination(better)})
    together = rank({"a": _examination([0.0] * 60, passage=20), "b": _examination(better, passage=20)})
    assert [one.rank for one in alone.tables[0].standings] == [1, 2]
    assert [one.rank for one in together.tables[0].standings] == [1, 1]
    assert together.tables[0].clusters == 3


def test_less_perplexity_is_better():
    table = rank(
        {
            "high": _examination([9.0 + i % 3 for i in range(40)], metric="perplexity"),
            "low": _examination([3.0 + i % 3 for i in range(40)], metric="perplexity"),
        }
    ).tables[0]
    assert [(one.model, one.rank) for one in table.standings] == [("low", 1), ("high", 2)]


def test_other_items_are_left_out_and_named():
    table = rank({"a": _examination([1, 0, 1, 1]), "b": _examination([1, 1, None, None])}).tables[0]
    assert table.items == 2
    assert table.notes == ("compared on the 2 items that all models answered, of 4 (a 4, b 2)",)
    assert table.standings[0].model == "b"


def test_other_settings_are_refused_unless_wanted():
    models = {"a": _examination([1, 0], settings="one-shot"), "b": _examination([1, 1], settings="five-shot")}
    with pytest.raises(UsageError, match=r"sums: 2 of 2 items have different settings .a one-shot, b five-shot."):
        rank(models)
    assert "different settings" in rank(models, across_settings=True).tables[0].notes[0]


def test_no_common_item_or_task_is_refused():
    with pytest.raises(UsageError, match=r"no item in common .a 1, b 1 items."):
        rank({"a": _examination([1, None]), "b": _examination([None, 1])})
    with pytest.raises(UsageError, match="no two models took the same task: sums: only a took it"):
        rank({"a": _examination([1]), "b": _examination([1], task="words")})
    with pytest.raises(UsageError, match="b has no exact_match"):
        rank({"a": _examination([1]), "b": _examination([1], metric="f1")})
    with pytest.raises(UsageError, match="needs at least two"):
        rank({"a": _examination([1])})


def test_a_task_that_one_model_lacks_is_named():
    both = _examination([1, 0])
    more = Examination((), {**both.items, **_examination([1, 1], task="words").items})
    third = _examination([0, 0], task="words")
    board = rank({"a": both, "b": more, "c": third})
    assert board.notes == ("sums: not taken by c", "words: not taken by a")
    assert [table.task for table in board.tables] == ["sums", "words"]


def _written(folder, *arguments, **options):
    write_examination(folder, _examination(*arguments, **options))
    return folder


def test_folders_are_found_and_models_of_one_name_told_apart(tmp_path):
    first = _written(tmp_path / "all" / "one", [1], name="/srv/models/llama.gguf")
    second = _written(tmp_path / "all" / "two", [1], name="llama")
    third = _written(tmp_path / "three", [1], name="qwen")
    found = read_results([tmp_path / "all", third / "results.json"])
    assert list(found) == [f"llama ({first})", f"llama ({second})", "qwen"]
    with pytest.raises(UsageError, match="given twice"):
        read_results([first, tmp_path / "all"])
    with pytest.raises(UsageError, match=r"no results.json here or below"):
        read_results([tmp_path / "nowhere"])
    (first / "items" / "sums.jsonl").write_text("edited\n")
    with pytest.raises(DamagedFileError):
        read_results([tmp_path / "all"])


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.loads, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        if tag not in ("meta", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "line", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything_and_loads_nothing(board, tmp_path):
    path = tmp_path / "board.html"
    write_leaderboard(board, path)
    page = _Page()
    page.feed(path.read_text())
    assert (page.open, page.loads) == ([], [])
    for name in ("strong", "close", "middle", "weak"):
        assert name in page.text
    assert "0.7000" in page.text
    places = [float(x) for x in re.findall(r'(?:x1|x2|cx)="([^"]+)"', path.read_text())]
    assert len(places) == 12
    assert all(0 <= place <= 240 for place in places)


def test_the_page_is_written_in_chinese_too(board, tmp_path):
    path = tmp_path / "board.html"
    write_leaderboard(board, path, "zh")
    page = _Page()
    page.feed(path.read_text())
    assert (page.open, page.loads) == ([], [])
    for said in ("排行榜", "名次", "95% 区间", "strong", "0.7000"):
        assert said in page.text
    assert "Rank" not in page.text and "Better" not in page.text


def test_names_are_text_on_the_page(tmp_path):
    path = tmp_path / "board.html"
    write_leaderboard(rank({"<script>x</script>": _examination([1, 1]), "b": _examination([1, 1])}), path)
    assert "<script>" not in path.read_text()


def test_the_verb(tmp_path, capsys):
    from armillary.cli.verbs.leaderboard import leaderboard

    folders = [_written(tmp_path / name, _answers(share), name=name) for name, share in (("a", 0.5), ("b", 0.9))]
    leaderboard(folders, tmp_path / "b.html", "en", as_json=True)
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert [(one["model"], one["rank"]) for one in table["standings"]] == [("b", 1), ("a", 2)]
    assert table["pairs"][0]["compared"]["difference"]["value"] == pytest.approx(0.4)
    assert (tmp_path / "b.html").exists()
