"""Chat templates: programs in Jinja that came with a model, and turn messages into the text that it was taught.

They run in Jinja's immutable sandbox, with messages and tools as plain data and the environment that ``transformers``
gives them: ``raise_exception``, ``strftime_now``, ``tojson``, loop controls, and the tag ``generation``, which marks
what is trained and changes no text.
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

from armillary.recipe import UsageError


class ChatTemplate:
    """A template with the special tokens that it may name (``bos_token``, ``eos_token``, …).

    Raises:
        UsageError: it is not a template.
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
            raise UsageError(f"the chat template refuses all messages: it is no Jinja template ({error})") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], prompt: bool = True, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The text of ``messages``; with ``prompt`` also what the assistant's turn begins with.

        Raises:
            UsageError: the template refuses these messages.
        """
        offered = {"tools": list(tools)} if tools else {}
        try:
            return self._compiled.render(messages=list(messages), add_generation_prompt=prompt, **offered, **self.named)
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError, RecursionError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"the chat template refuses the messages ({said})") from error


def read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a model's folder, from chat_template.jinja or from ``config`` (tokenizer_config.json).

    There it may be one of several with names. None where the folder has none.

    Raises:
        UsageError: its file cannot be read.
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
    """``{% generation %}…{% endgeneration %}`` is what it holds."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

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
    """As templates expect it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
