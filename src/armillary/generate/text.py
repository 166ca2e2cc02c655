"""Tokenizer, chat template and end tokens of a Hugging Face folder, without ``transformers``."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from armillary.generate.backend import Message
from armillary.generate.chat import ChatTemplate, read_template
from armillary.recipe import ArmillaryError, UsageError, model_json

_TORN = "\ufffd"  # the decoded form of an incomplete character
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte, in vocabularies that have a token for each
# The character that stands for each byte in a byte-level vocabulary (GPT-2): itself if it can be seen.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTES = {chr(byte): byte for byte in _SEEN} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


class ModelText:
    """The tokenizer of a model, with the other settings for text in its folder.

    ``first`` is the token that starts a document (or the one that ends it, if none does). ``ends`` are the tokens that
    end an answer. ``named`` are special tokens by their names in chat templates.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        ends: frozenset[int],
        named: Mapping[str, str] | None = None,
        template: str | None = None,
    ) -> None:
        self.tokenizer, self.ends, self.named, self._template = tokenizer, ends, dict(named or {}), template
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = {token.content: number for number, token in added.items() if token.special}
        self._byte_level = tokenizer.decoder is not None and "ByteLevel" in str(tokenizer.decoder)
        self._bos = self.named.get("bos_token")
        token = self._bos or self.named.get("eos_token")
        self.first: int | None = tokenizer.token_to_id(token) if token else min(ends, default=None)

    @classmethod
    def from_folder(cls, folder: Path) -> ModelText:
        """Read from a Hugging Face folder.

        Raises:
            UsageError: no tokenizer.json or tokenizer.model, or a file that cannot be read.
        """
        path = folder / "tokenizer.json"
        try:
            if not path.exists() and (folder / "tokenizer.model").is_file():
                from armillary.model import tokenizer_text  # not where a server tokenizes

                tokenizer = Tokenizer.from_str(tokenizer_text(folder) or "")
            else:
                tokenizer = Tokenizer.from_file(str(path))
        except ArmillaryError:
            raise
        except Exception as error:  # the library raises a plain Exception
            raise UsageError(
                f"{path}: cannot be read as a tokenizer ({error}); the folder needs the tokenizer of its model"
            ) from error
        config = model_json(folder / "tokenizer_config.json")
        named = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[name] = token
        ends = model_json(folder / "generation_config.json").get("eos_token_id")
        if ends is None:
            ends = model_json(folder / "config.json").get("eos_token_id")
        if ends is None and "eos_token" in named:
            ends = tokenizer.token_to_id(named["eos_token"])
        found = [ends] if isinstance(ends, int) else ends or []
        if not isinstance(found, list) or not all(isinstance(end, int) for end in found):
            raise UsageError(f"{folder}: eos_token_id is {ends!r}; it must be a token id or a list of them")
        return cls(tokenizer, frozenset(found), named, read_template(folder, config))

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The model's chat template; UsageError if it is not a template."""
        return None if self._template is None else ChatTemplate(self._template, self.named)

    def encode(self, text: str, special: bool) -> list[int]:
        """The tokens of ``text``; ``special`` adds the tokens that start a prompt, unless the text already has them."""
        doubled = bool(self._bos) and text.startswith(str(self._bos))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"text with a lone surrogate (character {error.start + 1}) has no UTF-8 form; give valid Unicode"
            ) from error
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special and not doubled).ids
        return ids

    def special(self, text: str) -> int | None:
        """The special token named ``text``; None if there is none."""
        return self._special.get(text)

    @property
    def specials(self) -> list[int]:
        """The numbers of all special tokens."""
        return sorted(self._special.values())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens`` without special tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def spell(self, token: int) -> bytes:
        """The bytes of one token: of a special token its name, of a number without a token none."""
        name = self.tokenizer.id_to_token(token)
        if name is None:
            return b""
        if token in self._added:
            return name.encode()
        if self._byte_level:
            return bytes(_BYTES[character] for character in name)
        if (byte := _BYTE.fullmatch(name)) is not None:
            return bytes([int(byte[1], 16)])
        return name.replace("\u2581", " ").encode()

    def chat(self, messages: Sequence[Message]) -> str:
        """The messages in the text format that the model was trained on.

        Raises:
            UsageError: there is no template, or it refuses these messages.
        """
        if self.template is None:
            raise UsageError("this model has no chat template; give the prompt as text")
        plain = [{"role": message.role, "content": message.content} for message in messages]
        return self.template.render(plain)


class TextStream:
    """The text of a growing answer: which part is final, and whether a stop string has occurred.

    A token is decoded together with the tokens since the last complete character, and those before them that determine
    spaces. The cost per token therefore does not grow with the answer.
    """

    def __init__(self, text: ModelText, stops: Sequence[str]) -> None:
        self._text, self._stops = text, tuple(stops)
        self._tokens: list[int] = []
        self._from = self._read = 0  # tokens from _from on are decoded; those before _read are already in `text`
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """Add a token; afterwards ``stopped`` says whether the answer ends at the end of ``text``."""
        self._tokens.append(token)
        before = self._text.decode(self._tokens[self._from : self._read])
        now = self._text.decode(self._tokens[self._from :])
        if now.endswith(_TORN) or len(now) <= len(before):
            self._look(now[len(before) :].rstrip(_TORN), final=False)
            return
        new = now[len(before) :]
        self._from, self._read = self._read, len(self._tokens)
        self._look(new, final=True)

    def _look(self, new: str, final: bool) -> None:
        """Search for stop strings in the text followed by ``new``, which is kept if it is ``final``."""
        longest = max(map(len, self._stops), default=0)
        start = max(0, len(self.text) - longest)
        tail = self.text[start:] + new
        ends = [tail.index(stop) for stop in self._stops if stop in tail]
        if ends:
            self.text = self.text[:start] + tail[: min(ends)]
            self.stopped = True
        elif final:
            self.text += new

    @property
    def shown(self) -> int:
        """The number of characters of ``text`` that are final; the rest may become a stop string."""
        if self.stopped:
            return len(self.text)
        return len(self.text) - max((_overlap(self.text, stop) for stop in self._stops), default=0)

    def finish(self) -> str:
        """The whole text, including an incomplete character at the end of a cut answer."""
        if self.stopped:
            return self.text
        rest = self._text.decode(self._tokens[self._from :])
        return self.text + rest[len(self._text.decode(self._tokens[self._from : self._read])) :]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest prefix of ``stop`` that ends ``text``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
