"""Sample texts of a trained model, from prompts that start at a word and end at a whole character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from armillary.corpus import Corpus
from armillary.generate import Sampling
from armillary.generate.native import generate
from armillary.model import Transformer
from armillary.recipe import RunSpec

SAMPLE_TOKENS = 64
PROMPT_TOKENS = 24
# The decoded form of an incomplete character.
_TORN = "\ufffd"


def sample(model: Transformer, corpus: Corpus, spec: RunSpec, domain: str) -> tuple[str, str]:
    """The beginning of a held-out text of ``domain``, and the model's continuation."""
    tokenizer = corpus.tokenizer()

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens))

    window = corpus.validation(domain, spec.context_length, 1).tokens[0].tolist()
    prompt = beginning(window, decode, min(PROMPT_TOKENS, spec.context_length // 2), corpus.manifest.end_of_text_id)
    sampling = Sampling(max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95)
    written = generate(model, prompt, sampling, corpus.manifest.end_of_text_id)
    shown = decode(prompt)
    # Decoded together, since a character may begin in the prompt's last token and a space belongs to the next word.
    return shown.lstrip(), decode([*prompt, *written])[len(shown) :].rstrip(_TORN)


def beginning(tokens: Sequence[int], decode: Callable[[Sequence[int]], str], length: int, end: int) -> list[int]:
    """``length`` tokens of a text from the first suitable start of a word, without torn characters.

    A word begins after ``end`` (the token between documents), after a space or line end, and at every character of a
    script without spaces. The start of a line is preferred to a position inside a line.
    """
    places = [i for i in range(len(tokens) - 1) if _begins(tokens, i, decode, end)]
    lines = [i for i in places if i == 0 or tokens[i - 1] == end or decode(tokens[:i]).endswith("\n")]
    start = next(iter([i for i in lines if i <= len(tokens) // 2] or places), 0)
    stop = min(start + length, len(tokens))
    while stop > start + 1 and decode(tokens[start:stop]).endswith(_TORN):
        stop -= 1
    return list(tokens[start:stop])


def _begins(tokens: Sequence[int], i: int, decode: Callable[[Sequence[int]], str], end: int) -> bool:
    if tokens[i] == end:
        return False
    after = decode(tokens[i : i + 4])
    if not after.strip() or after.startswith(_TORN):
        return False
    if i > 0 and tokens[i - 1] == end:
        return True
    before = decode(tokens[max(0, i - 4) : i])
    if before.endswith(_TORN):
        return False
    spaced = after[0].isspace() or (before != "" and before[-1].isspace())
    # The window may begin inside a word, except in a script without spaces.
    return spaced or _unspaced(after[0])


def _unspaced(character: str) -> bool:
    """Whether words of this character's script are written without spaces (Chinese, Japanese, Thai, ...)."""
    return any(low <= ord(character) <= high for low, high in ((0x0E00, 0x0EFF), (0x2E80, 0x9FFF), (0x20000, 0x3FFFF)))
