"""Items are looked for in corpora, JSON Lines of any form and text, and scores are given without those found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from armillary.corpus import build_corpus
from armillary.evaluate import Examination, Item
from armillary.evaluate.tasks import clean_scores, contamination, contamination_in
from armillary.recipe import CorpusSpec, DomainSpec, TokenizerSpec, UsageError

QUESTION = "How many of the forty sheep does the shepherd find again on the third evening after the great storm?"
OTHER = "Which of the two rivers that meet below the old town carries more water in a dry summer month of the year?"


def flags(*paths: Path) -> list[bool | None]:
    return [one and one["contaminated"] for one in contamination_in(paths)([QUESTION, OTHER, "1+1=?"])]


def test_rows_of_any_form_text_and_compressed_files(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": f"Say: {QUESTION}"}]}
    (tmp_path / "chat.jsonl").write_text(f"\ufeff{json.dumps(chat)}\r\n\r\n", encoding="utf-8")
    assert flags(tmp_path / "chat.jsonl") == [True, False, None]
    folder = tmp_path / "folder/inner"
    folder.mkdir(parents=True)
    (folder / "book.txt").write_text("Once.\n" + OTHER.replace(" ", "\n"))
    (folder / "more.jsonl.gz").write_bytes(gzip.compress(json.dumps({"q": {"text": QUESTION}}).encode()))
    assert flags(folder / "book.txt") == [False, True, None]
    assert flags(folder.parent) == [True, True, None]
    (found, *_) = contamination_in([folder / "more.jsonl.gz"])([QUESTION])
    assert found is not None and found["exact"] == 1 and found["document"] == f"{folder / 'more.jsonl.gz'}:1"


def test_an_item_across_the_border_of_two_blocks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "_BLOCK", 300)
    monkeypatch.setattr(contamination, "_SHARED", 150)
    for start in (200, 250, 299):
        (tmp_path / "a.txt").write_text("x " * (start // 2) + QUESTION + " y" * 400)
        (found, *_) = contamination_in([tmp_path / "a.txt"])([QUESTION])
        assert found is not None and found["exact"] == 1


def test_a_corpus_is_read_from_its_tokens(tmp_path: Path) -> None:
    lines = [f"{OTHER} {number}" for number in range(80)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    spec = CorpusSpec(
        domains={"a": DomainSpec(source=str(tmp_path / "a.jsonl"), licence="CC0-1.0")},
        tokenizer=TokenizerSpec(vocab_size=400),
    )
    assert flags(build_corpus(spec, tmp_path / "corpus").path) == [False, True, None]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [("a.jsonl", b'{"a": 1}\n{"a', "a.jsonl:2: not JSON"), ("a.txt", b"\xff\xff", "UTF-8"), ("a.txt.gz", b"x", "read")],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=problem):
        flags(tmp_path / name)
    with pytest.raises(UsageError, match="no such file"):
        contamination_in([tmp_path / "missing"])


def test_scores_without_the_items_that_were_found() -> None:
    def item(name: str, score: float, found: bool | None) -> Item:
        known = {"exact": 0.0, "near": 0.0, "document": "", "contaminated": found}
        return Item(name, "t", name, "s", "g", ("o",), "a", None, {"exact_match": score}, contaminated=known)

    items = (item("a", 1, True), item("b", 0, False), item("c", 1, None), item("d", 0, False))
    (one,) = clean_scores(Examination((), {"t": items}))
    assert (one.items, one.contaminated, one.not_judged, one.value, one.clean) == (4, 1, 1, 0.5, 1 / 3)
    (one,) = clean_scores(Examination((), {"t": items[:1]}))
    assert one.clean is None
