"""Renders a conversation as tokens, and marks the tokens in the loss: the assistant's answers and their ends.

The text comes from a chat template: the one in the model's folder, one of ``BUILT_IN``, or a file. Most templates do
not mark the tokens to train, so the marks are derived from prefixes. For each turn of the assistant, the earlier turns
are rendered alone, with the template's prompt for an answer: this is the model's input at inference. Their tokens must
be a prefix of the whole conversation. The tokens after this prefix, up to and including the end of the turn, are
trained. A template or tokenizer that changes the prefix is refused: training and inference would see different tokens.

Trade-off: tokens of the text between turns, such as the line break after an end of turn, are never trained.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from armillary.generate import (
    Backend,
    ChatTemplate,
    Completion,
    Cost,
    Likelihood,
    ModelText,
    Pair,
    Request,
)
from armillary.post.formats import Conversation
from armillary.recipe import UsageError, canonical_hash

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The turns of TeleChat2's newer releases (3B to 35B), without their default system message. The releases have a special
# form for tool results; a conversation with tools needs the template of the release.
TELECHAT2 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<_system>' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<_user>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<_bot>' + message['content'] + '<_end>\\n' }}"
    "{% else %}{{ raise_exception('only system, user and assistant, not ' + message['role']) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<_bot>' }}{% endif %}"
)
# TeleChat2-115B has a token at the start of a text, and no system message.
TELECHAT2_115B = (
    "{{ '<_start>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<_user>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<_bot>' + message['content'] + '<_end>' }}"
    "{% else %}{{ raise_exception('only user and assistant, not ' + message['role']) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<_bot>' }}{% endif %}"
)
# For a base model without chat tokens: its end-of-text token ends a turn.
PLAIN = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\\n' + (message['content'] | trim) }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
BUILT_IN = {"chatml": CHATML, "telechat2": TELECHAT2, "telechat2-115b": TELECHAT2_115B, "plain": PLAIN}
# The default is the first template whose tokens the vocabulary has.
_NEEDS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "telechat2": ("<_user>", "<_bot>", "<_end>"),
    "telechat2-115b": ("<_start>", "<_user>", "<_bot>", "<_end>"),
}
_PROBE = "The quick brown fox"


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens. ``trained`` holds 1 for each token in the loss, else 0; ``turns`` are the trained parts
    of ``tokens``, one for each turn of the assistant; ``where`` is the file and line that it came from.
    """

    tokens: list[int]
    trained: list[int]
    turns: tuple[range, ...]
    where: str = ""

    @property
    def asked(self) -> list[int]:
        """The tokens before the last trained turn, which are its prompt."""
        return self.tokens[: self.turns[-1].start]


class ChangedTurnsError(UsageError):
    """A template renders a turn differently once later turns follow."""


@dataclass(frozen=True)
class Renderer:
    """Renders conversations for one model; created by ``open_renderer``.

    ``template`` is the name of the template: ``folder``, one of ``BUILT_IN``, or a path. ``end`` is the token that ends
    an assistant's turn, derived from the template.
    """

    text: ModelText
    chat: ChatTemplate
    template: str
    end: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self._end())

    def render(self, conversation: Conversation) -> Rendered:
        """The tokens of ``conversation`` up to the end of its last trained turn.

        Raises:
            ChangedTurnsError: the template changes earlier turns; ``render_apart`` may work.
            UsageError: the template refuses or loses a message or changes a prefix, a text contains a special token, or
                there is no assistant's turn. The message names file and line.
        """
        with _located(conversation):
            return self._render(conversation, self._answers(conversation))

    def render_last(self, conversation: Conversation) -> Rendered:
        """Like ``render``, but only the last answer is in the loss, and the template may change earlier ones.

        Raises:
            UsageError: as ``render``.
        """
        with _located(conversation):
            return self._render(conversation, self._answers(conversation)[-1:])

    def render_apart(self, conversation: Conversation) -> list[Rendered]:
        """One sample per answer of ``conversation``, with the earlier turns rendered as at inference.

        For templates that drop the reasoning of earlier answers, such as Qwen3's.

        Raises:
            UsageError: as ``render``.
        """
        with _located(conversation):
            return [self._render(conversation, [place]) for place in self._answers(conversation)]

    def prompt(self, conversation: Conversation) -> list[int]:
        """The prompt tokens for an answer to ``conversation``, which ends with a user's turn.

        Raises:
            UsageError: as ``render``.
        """
        self._check_texts(conversation)
        return self._encode(self.chat.render(conversation.messages, True, conversation.tools))

    def pieces(self, rendered: Rendered) -> list[tuple[str, bool]]:
        """The text of ``rendered`` in parts, each with a flag for trained text."""
        parts: list[tuple[str, bool]] = []
        start = 0
        for at in range(1, len(rendered.tokens) + 1):
            if at == len(rendered.tokens) or rendered.trained[at] != rendered.trained[start]:
                parts.append((self._shown(rendered.tokens[start:at]), bool(rendered.trained[start])))
                start = at
        return parts

    def _answers(self, conversation: Conversation) -> list[int]:
        answers = [place for place, turn in enumerate(conversation.messages) if turn["role"] == "assistant"]
        if not answers:
            raise UsageError("has no assistant turn, so there is nothing to train on; leave it out")
        return answers

    def _render(self, conversation: Conversation, answers: list[int]) -> Rendered:
        """The conversation up to the last of ``answers``, the indices of the trained turns."""
        messages, tools = conversation.messages, conversation.tools
        self._check_texts(conversation)
        messages = messages[: answers[-1] + 1]
        whole = self.chat.render(messages, False, tools)
        self._check_nothing_lost(messages, whole, answers)
        tokens = self._encode(whole)
        starts = []
        for place in answers:
            asked = self.chat.render(messages[:place], True, tools)
            start = self._length_within(asked, whole, tokens)
            if start is None:
                self._refuse_prefix(f"before messages[{place}]", self._encode(asked), tokens)
            starts.append(start)
        turns = []
        for place, start, limit in zip(answers, starts, [*starts[1:], len(tokens)], strict=True):
            stop = self._end_of(tokens, start, limit, place) + 1
            if place != answers[-1]:
                answered = self.chat.render(messages[: place + 1], False, tools)
                # after the end of the turn they may differ: some templates end the whole text with a token
                if not whole.startswith(answered) and (alone := self._encode(answered)[:stop]) != tokens[:stop]:
                    self._refuse_prefix(f"up to messages[{place}]", alone, tokens)
            turns.append(range(start, stop))
        tokens = tokens[: turns[-1].stop]
        trained = [0] * len(tokens)
        for turn in turns:
            trained[turn.start : turn.stop] = [1] * len(turn)
        return Rendered(tokens, trained, tuple(turns), conversation.where)

    def _length_within(self, part: str, whole: str, tokens: list[int]) -> int | None:
        """The number of tokens of ``part`` if they are a prefix of ``tokens``, the tokens of ``whole``; else None.

        Tokenizers split a text at special tokens first. If ``whole`` starts with ``part``,
        only the text of ``part`` after its last special token is encoded again.
        """
        if self._special_text is not None and whole.startswith(part):
            found = list(self._special_text.finditer(part))
            places = [at for at, token in enumerate(tokens) if token in self._special]
            if 0 < len(found) <= len(places):
                start = places[len(found) - 1] + 1
                rest = self._encode(part[found[-1].end() :])
                if tokens[start : start + len(rest)] == rest:
                    return start + len(rest)
        alone = self._encode(part)
        return len(alone) if tokens[: len(alone)] == alone else None

    def _end_of(self, tokens: list[int], start: int, limit: int, place: int) -> int:
        """Index of the token that ends the assistant's turn from ``start`` on: its first end of turn.

        Without one, its last special token, since some templates end a call of a tool differently.
        """
        if self.end in tokens[start:limit]:
            return tokens.index(self.end, start, limit)
        special = [at for at in range(start, limit) if tokens[at] in self._special]
        if not special or special[-1] == start:
            raise UsageError(
                f"messages[{place}]: the template does not end this turn with a special token, so the model would not "
                "learn to stop; give another with --template"
            )
        return special[-1]

    def _refuse_prefix(self, what: str, part: list[int], whole: list[int]) -> NoReturn:
        shared = next(
            (i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole))
        )
        alone, inside = (self._shown(tokens[max(0, shared - 4) : shared + 8]) for tokens in (part, whole))
        raise ChangedTurnsError(
            f"the chat template '{self.template}' renders the turns {what} differently within the whole conversation: "
            f"{alone!r} alone, {inside!r} within it, from token {max(0, shared - 4)} on. Either it changes earlier "
            "turns, or text runs together with what follows. Prompts would differ from the training text: give another "
            "template with --template, or conversations of one answer"
        )

    def _shown(self, tokens: list[int]) -> str:
        text: str = self.text.tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def _check_texts(self, conversation: Conversation) -> None:
        if self._special_text is None:
            return
        for place, turn in enumerate(conversation.messages):
            for name in ("content", "reasoning_content"):
                found = self._special_text.search(turn.get(name, ""))
                if found:
                    raise UsageError(
                        f"messages[{place}].{name}: contains {found[0]!r} (character {found.start() + 1}), which is a "
                        "special token of this model and would end or begin a turn; remove it"
                    )

    def _check_nothing_lost(self, messages: tuple[Mapping[str, Any], ...], whole: str, answers: list[int]) -> None:
        """Check that every message is in the text, ignoring white space and answers that are not trained."""
        rest = _BLANK.sub("", whole)
        at = 0
        for place, turn in enumerate(messages):
            if turn["role"] == "assistant" and place not in answers:
                continue
            text = _BLANK.sub("", turn["content"])
            found = rest.find(text, at)
            if found < 0:
                found = rest.find(text)  # a template can move the system message
            if found < 0:
                raise (ChangedTurnsError if place in answers[:-1] else UsageError)(
                    f"messages[{place}] ({turn['role']}): its text is not in the output of the chat template "
                    f"'{self.template}', which drops or changes it; give another with --template"
                )
            at = max(at, found)

    def _end(self) -> int:
        """The special token after an answer."""
        question, answer = {"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}
        asked = self._encode(self.chat.render([question], True))
        whole = self._encode(self.chat.render([question, answer], False))
        if whole[: len(asked)] != asked:
            self._refuse_prefix("of a question", asked, whole)
        # an answer may begin with special tokens
        spoken = len(self._encode(_PROBE))
        special = [token for token in whole[len(asked) + spoken - 1 :] if token in self._special]
        if not special:
            after = self._shown(whole[len(asked) :]).partition(_PROBE)[2]
            raise UsageError(
                f"the chat template '{self.template}' ends an answer with {after!r}, which contains no special token "
                "of the tokenizer: the end of a turn would not be in the loss, and the model would never stop; give "
                f"another with --template ({', '.join(BUILT_IN)}, or a file)"
            )
        return special[0]

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.text.tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    @cached_property
    def _special_text(self) -> re.Pattern[str] | None:
        added = self.text.tokenizer.get_added_tokens_decoder()
        names = sorted((t.content for t in added.values() if t.special and t.content), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _encode(self, text: str) -> list[int]:
        return self.text.encode(text, False)


_BLANK = re.compile(r"\s+")


@contextlib.contextmanager
def _located(conversation: Conversation) -> Iterator[None]:
    """Add the file and line of the conversation to errors."""
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{conversation.where}: {error}" if conversation.where else str(error)) from None


def open_renderer(folder: Path, template: str | None = None) -> Renderer:
    """The renderer for the model in ``folder``, a Hugging Face folder.

    ``template`` is ``folder``, one of ``BUILT_IN`` or the path of a Jinja file. None takes the folder's template if
    there is one, else ChatML's or TeleChat2's if the vocabulary has their tokens, else ``plain``.

    Raises:
        UsageError: an unreadable file, or a template that is invalid, ends turns without a special token, or needs
            tokens that the vocabulary lacks.
    """
    text = ModelText.from_folder(folder)
    if template is None:
        has = text.tokenizer.token_to_id
        known = (name for name, tokens in _NEEDS.items() if all(has(token) is not None for token in tokens))
        template = "folder" if text.template is not None else next(known, "plain")
    if template == "folder":
        if text.template is None:
            raise UsageError(f"{folder}: has no chat template; give --template ({', '.join(BUILT_IN)}, a file)")
        return Renderer(text, text.template, template)
    if template in BUILT_IN:
        missing = [token for token in _NEEDS.get(template, ()) if text.special(token) is None]
        if missing:
            raise UsageError(
                f"{folder}: its vocabulary has no special token {missing[0]!r}, which the template '{template}' needs; "
                "give --template plain"
            )
        if template == "plain" and "eos_token" not in text.named:
            raise UsageError(f"{folder / 'tokenizer_config.json'}: has no eos_token, which the template 'plain' needs")
        return Renderer(text, ChatTemplate(BUILT_IN[template], text.named), template)
    try:
        source = Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"template {template!r} cannot be read as a file ({error}); give 'folder', a built-in one "
            f"({', '.join(BUILT_IN)}), or the path of a Jinja file"
        ) from error
    return Renderer(text, ChatTemplate(source, text.named), template)


@dataclass(frozen=True)
class Templated:
    """A backend prompted in the form of ``chat``, such as a base model without its own template."""

    backend: Backend
    chat: ChatTemplate

    @property
    def identity(self) -> dict[str, Any]:
        """The backend's identity, with a hash of the template."""
        return {**self.backend.identity, "template": canonical_hash(self.chat.source)}

    @property
    def context(self) -> int:
        """See ``Backend``."""
        return self.backend.context

    @property
    def cost(self) -> Cost:
        """See ``Backend``."""
        return self.backend.cost

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See ``Backend``; the template turns messages into text."""
        return self.backend.complete([self._worded(request) for request in requests])

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """See ``Backend``."""
        return self.backend.loglikelihood(pairs)

    def tokenize(self, text: str) -> list[int]:
        """See ``Backend``."""
        return self.backend.tokenize(text)

    def close(self) -> None:
        """See ``Backend``."""
        self.backend.close()

    def _worded(self, request: Request) -> Request:
        if isinstance(request.prompt, str):
            return request
        return replace(
            request, prompt=self.chat.render([{"role": m.role, "content": m.content} for m in request.prompt])
        )
