"""Where a sample begins and ends: at a word and at a character, whatever the tokens cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from armillary.path.samples import beginning

END = 256
WORDS = ["sun", "moon", "étoile", "浑仪", "天文学", "def f(x):", "(a, b)", "мир", "🜚🜛", "ทดสอบ"]


def decode(tokens: Sequence[int]) -> str:
    """One token for each byte; the token between documents is no text."""
    return bytes(t for t in tokens if t != END).decode("utf-8", errors="replace")


texts = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", "\n", "  ", "\n\n"])), min_size=4, max_size=30)


@given(documents=st.lists(texts, min_size=1, max_size=3), cut=st.integers(0, 40), length=st.integers(8, 40))
def test_a_beginning_is_whole_words_and_characters(
    documents: list[list[tuple[str, str]]], cut: int, length: int
) -> None:
    whole: list[int] = []
    for words in documents:
        whole += [*"".join(word + gap for word, gap in words).encode(), END]
    window = whole[cut:]
    gaps = (*b" \n", END)
    assume(any(window[i - 1] in gaps and window[i] not in gaps for i in range(1, len(window) - 1)))
    found = beginning(window, decode, length, END)
    shown = decode(found)
    assert "\ufffd" not in shown and len(found) <= length
    start = next(i for i in range(len(window)) if window[i : i + len(found)] == found)
    before = decode(whole[: cut + start])
    after = shown.lstrip()
    assert after
    begins = not before or whole[cut + start - 1] == END or before[-1].isspace() or shown[0].isspace()
    unspaced = after[0] in "浑仪天文学ทดสอบ"
    assert begins or unspaced


@pytest.mark.parametrize("tokens", [[], [END], [END, END], [65], list(b"aaaa")])
def test_a_window_without_any_place_to_begin_is_shown_as_it_is(tokens: list[int]) -> None:
    assert beginning(tokens, decode, 4, END) == tokens[:4]
