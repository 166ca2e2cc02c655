"""Chat templates: Jinja programs that ship with a model and turn messages into the text format of its training.

They run in Jinja's immutable sandbox. Messages and tools are plain data, and the environment is the same as in
``transformers``: ``raise_exception``, ``strftime_now``, ``tojson``, loop controls, and the tag ``generation``, which
marks the text to train on and changes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from armillary.recipe import UsageError, one_line


class ChatTemplate:
    """A template with the special tokens that it may use (``bos_token``, ``eos_token``, …).

    Raises:
        UsageError: not a Jinja template.
    """

    def __init__(self, source: str, named: Mapping[str, str]) -> None:
        self.source, self.named = source, dict(named)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._compiled = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UsageError(f"the chat template refuses all messages: it is not a Jinja template ({error})") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of ``messages``; with ``prompt`` also the start of the assistant's turn.

        ``settings`` are variables of this template, such as Qwen3's ``enable_thinking``; those above come first.

        Raises:
            UsageError: the template refuses these messages.
        """
        given = {**(settings or {}), **self.named, "messages": list(messages), "add_generation_prompt": prompt}
        if tools:
            given["tools"] = list(tools)
        try:
            return self._compiled.render(given)
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError, RecursionError) as error:
            raise UsageError(f"the chat template refuses the messages ({one_line(error)})") from error


def read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a model's folder, from chat_template.jinja or from ``config`` (tokenizer_config.json).

    ``config`` may hold several named templates. None if the folder has none.

    Raises:
        UsageError: the file cannot be read.
    """
    path = folder / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); fetch the folder again") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


class _Generation(jinja2.ext.Extension):
    """Renders ``{% generation %}…{% endgeneration %}`` as its content."""

    tags = {"generation"}  # noqa: RUF012 (declared like this in Jinja)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as templates expect."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
