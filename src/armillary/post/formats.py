"""Reads and writes conversations and preference pairs in common file formats, recognised by their fields.

==========  ======================================================================================================
messages    ``{"messages": [{"role": "user", "content": "…"}, …], "tools": […]}`` (OpenAI, TRL; items of this program)
alpaca      ``{"instruction": "…", "input": "…", "output": "…", "system": "…", "history": [["…", "…"], …]}``
sharegpt    ``{"conversations": [{"from": "human", "value": "…"}, …], "system": "…", "tools": […]}``
telechat    ``{"system": "…", "dialog": [{"role": "user", "content": "…"}, {"role": "bot", "content": "…"}]}``
pairs       ``{"prompt": […], "chosen": […], "rejected": […]}`` (TRL); both answers may include the prompt instead
==========  ======================================================================================================

A file holds one object per line, or one JSON array of objects; both are read in bounded memory. All rows of a file
have the same format. Unknown fields are ignored here, and kept by `records`. Nothing is guessed: a wrong row is an
error that names file, line and field.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from armillary.post.items import parse_row, read_rows, to_line
from armillary.post.joins import write_lines
from armillary.recipe import UsageError

Format = Literal["messages", "alpaca", "sharegpt", "telechat"]
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {
    "system": "system",
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "function_call",
    "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_TELECHAT = {"user": "user", "bot": "assistant", "system": "system"}
_CHUNK = 1 << 16
_LONGEST = 64 << 20  # characters of one element of an array

Turn = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Turns of a chat as plain data: ``role`` (one of ``ROLES``), ``content`` (text), and optionally ``tool_calls``,
    ``tool_call_id`` and ``name``; the ``tools`` available to the model; and the position ``where`` (file and line).
    """

    messages: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = ""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to the same turns: the turns after ``prompt``, and the position of the pair (file and line)."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    where: str = ""


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Yield the conversations in a file of any format except ``pairs``.

    Raises:
        UsageError: the file cannot be read or is empty, its rows have an unknown format or different formats, or a row
            is wrong. The message names file, line, field and the remedy.
    """
    where = ""
    for where, kind, row in read_kinds(path):
        if kind == "pairs":
            raise UsageError(
                f"{where}: a preference pair, which is for `armillary post dpo`; for conversations {_known()}"
            )
        yield read_conversation(where, kind, row)
    if not where:
        raise UsageError(f"{path}: has no rows; write one per line, such as {_EXAMPLES['messages']}")


def read_kinds(path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield position, format and fields of each row of a file of conversations or pairs.

    Raises:
        UsageError: the file cannot be read, or its rows have an unknown format or different formats.
    """
    first: str | None = None
    for number, row in _rows(path):
        where = f"{path}:{number}"
        kind = _format_of(where, row)
        first = first or kind
        if kind != first:
            raise UsageError(
                f"{where}: has the fields of format '{kind}', but earlier rows are '{first}'; split the file"
            )
        yield where, kind, row


def read_conversation(where: str, kind: str, row: Mapping[str, Any]) -> Conversation:
    """The conversation in a row of the format ``kind``; ``where`` is its position for messages.

    Raises:
        UsageError: the row is wrong.
    """
    try:
        messages, tools = _READERS[kind](row)
        return Conversation(_in_order(messages), tools, where)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def read_pair(where: str, row: Any) -> AnswerPair:
    """The pair in a row.

    Raises:
        UsageError: the row is wrong, or its two answers are the same.
    """
    try:
        if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
            raise UsageError(f"no fields chosen and rejected; write rows such as {_EXAMPLES['pairs']}")
        return _pair(row, where)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def read_pairs(path: Path) -> Iterator[AnswerPair]:
    """Yield the preference pairs in a file; answers may be turns or plain text.

    Raises:
        UsageError: as ``read_conversations``; or the two answers of a row are the same.
    """
    found = False
    for number, row in _rows(path):
        found = True
        yield read_pair(f"{path}:{number}", row)
    if not found:
        raise UsageError(f"{path}: has no rows; write one per line, such as {_EXAMPLES['pairs']}")


def write_conversations(path: Path, conversations: Iterable[Conversation], kind: Format = "messages") -> int:
    """Write ``conversations`` as JSON lines in the format ``kind``, and return their number.

    The file appears only when it is complete.

    Raises:
        UsageError: the format cannot represent a conversation, such as tool calls in Alpaca.
        ArmillaryError: the file cannot be written.
    """
    return write_lines(path, (to_line(_WRITERS[kind](one)) for one in conversations)).lines


def write_pairs(path: Path, pairs: Iterable[AnswerPair]) -> int:
    """Write preference ``pairs`` as JSON lines, and return their number; the file appears only when it is complete.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    fields = ("prompt", "chosen", "rejected")
    rows = ({name: [dict(turn) for turn in getattr(pair, name)] for name in fields} for pair in pairs)
    return write_lines(path, map(to_line, rows)).lines


# ---- rows of a file -------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of each row of JSON lines, or of each element of one array."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a file of conversations") from None
    return _elements(path) if start == b"[" else read_rows(path)


def _elements(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of each element of a file that is one array."""
    decoder, line = json.JSONDecoder(), 1
    with open(path, encoding="utf-8-sig", newline="") as file:
        text, ended = "", False

        def more() -> None:
            nonlocal text, ended
            try:
                read = file.read(_CHUNK)
            except UnicodeDecodeError as error:
                raise UsageError(f"{path}: not UTF-8 from line {line} on ({error.reason}); save it as UTF-8") from None
            text, ended = text + read, not read

        def skip(signs: str = "") -> str:
            """Skip white space and ``signs``; return the next character, "" at the end of the file."""
            nonlocal text, line
            while True:
                rest = text.lstrip(" \t\r\n" + signs)
                line += text.count("\n", 0, len(text) - len(rest))
                text = rest
                if text or ended:
                    return text[:1]
                more()

        skip()
        text = text[1:]
        first = True
        while (sign := skip()) != "]":
            if not first:
                if sign != ",":
                    raise UsageError(f"{path}:{line}: {_BETWEEN if sign else _TORN}")
                text = text[1:]
                sign = skip()
            if not sign:
                raise UsageError(f"{path}:{line}: {_TORN}")
            first = False
            while True:
                try:
                    _, end = decoder.raw_decode(text)
                    if end < len(text) or ended:  # else a number may continue
                        break
                except (ValueError, RecursionError) as error:
                    if ended or len(text) > _LONGEST:
                        # the part of the file that is not JSON
                        raise UsageError(f"{path}:{line}: not JSON ({error}); {_TORN}") from None
                more()
            yield line, parse_row(path, line, text[:end].encode("utf-8", "surrogatepass") + b"\n")
            line += text.count("\n", 0, end)
            text = text[end:]
        text = text[1:]
        if skip():
            raise UsageError(f"{path}:{line}: text after the array; write one array, or one object per line")


_BETWEEN = "a comma or ] is missing between the rows of the array; repair the file"
_TORN = "the array is not closed: torn? Write it again, or one object per line"


# ---- one row --------------------------------------------------------------------------------------------------------

_EXAMPLES = {
    "messages": '{"messages": [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]}',
    "alpaca": '{"instruction": "Add.", "input": "1, 1", "output": "2"}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "1+1=?"}, {"from": "gpt", "value": "2"}]}',
    "telechat": '{"system": "", "dialog": [{"role": "user", "content": "1+1=?"}, {"role": "bot", "content": "2"}]}',
    "pairs": (
        '{"prompt": [{"role": "user", "content": "1+1=?"}], "chosen": [{"role": "assistant", "content": "2"}], '
        '"rejected": [{"role": "assistant", "content": "3"}]}'
    ),
}
_MARKS = {
    "messages": {"messages"},
    "alpaca": {"instruction", "output"},
    "sharegpt": {"conversations"},
    "telechat": {"dialog"},
}


def _format_of(where: str, row: Any) -> str:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a JSON {type(row).__name__}, not an object; such as {_EXAMPLES['messages']}")
    found = [kind for kind, marks in _MARKS.items() if marks <= row.keys()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{where}: has the fields of formats {' and '.join(found)}; keep the fields of one")
    if {"chosen", "rejected"} <= row.keys():
        return "pairs"
    if "instruction" in row:  # a question without its answer
        return "alpaca"
    fields = ", ".join(map(repr, list(row)[:8])) or "none"
    raise UsageError(f"{where}: its fields ({fields}) match no known format; {_known()}")


def _known() -> str:
    return "write " + "; or ".join(_EXAMPLES[kind] for kind in _MARKS)


def _openai(row: Mapping[str, Any]) -> tuple[list[Turn], tuple[Mapping[str, Any], ...]]:
    turns = _list("messages", row["messages"])
    return [_turn(f"messages[{place}]", turn) for place, turn in enumerate(turns)], _tools(row.get("tools"))


def _turn(where: str, turn: Any) -> Turn:
    """A turn with ``role`` and ``content``, and the fields of tool calls."""
    if not isinstance(turn, dict):
        raise UsageError(f"{where}: must be an object with role and content, given {turn!r:.200}")
    role = turn.get("role")
    if role == "developer":  # OpenAI's later name
        role = "system"
    if role not in ROLES:
        raise UsageError(f"{where}.role: must be one of {', '.join(ROLES)}, given {role!r:.100}")
    made: dict[str, Any] = {"role": role, "content": _content(f"{where}.content", turn.get("content"))}
    calls = turn.get("tool_calls")
    if calls is not None and calls != []:
        if role != "assistant":
            raise UsageError(f"{where}.tool_calls: only an assistant can call tools, but the role is {role!r}")
        made["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(_list(where, calls))]
    for name in ("tool_call_id", "name", "reasoning_content"):
        if turn.get(name) is not None:
            made[name] = _text(f"{where}.{name}", turn[name])
    if role == "assistant" and not made["content"].strip() and not made.keys() & {"tool_calls"}:
        raise UsageError(f"{where}.content: is empty, so the model would learn to answer nothing; leave the row out")
    return made


def _content(where: str, value: Any) -> str:
    """Text, or the texts of OpenAI's list of parts; null is empty."""
    if value is None:
        return ""
    if isinstance(value, list):
        for place, part in enumerate(value):
            if not isinstance(part, dict) or part.get("type") != "text":
                raise UsageError(f'{where}[{place}]: only parts {{"type": "text", "text": "…"}} can be read')
        return "".join(_text(f"{where}[{place}].text", part.get("text")) for place, part in enumerate(value))
    return _text(where, value)


def _call(where: str, call: Any) -> dict[str, Any]:
    """A call with its arguments as an object, as templates expect."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f'{where}: must be {{"type": "function", "function": {{"name": "…", "arguments": {{…}}}}}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}.function.arguments: not JSON ({error})") from None
    if not isinstance(arguments, dict):
        raise UsageError(f"{where}.function.arguments: must be an object or its JSON text, given {arguments!r:.100}")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made if call.get("id") is None else {"id": _text(f"{where}.id", call["id"]), **made}


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, str) and value.strip():  # as in many ShareGPT files
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"tools: not JSON ({error})") from None
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UsageError(f"tools: must be a list of objects, given {value!r:.100}")
    return tuple(value)


def _alpaca(row: Mapping[str, Any]) -> tuple[list[Turn], tuple[Mapping[str, Any], ...]]:
    turns = _system(row)
    for place, pair in enumerate(_list("history", row.get("history") or [])):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UsageError(f'history[{place}]: must be ["question", "answer"], given {pair!r:.100}')
        turns += _exchange(*(_filled(f"history[{place}][{i}]", text) for i, text in enumerate(pair)))
    question, given = _filled("instruction", row["instruction"]), _content("input", row.get("input"))
    turns += _exchange(f"{question}\n{given}" if given.strip() else question, _filled("output", row.get("output")))
    return turns, ()


def _exchange(question: str, answer: str) -> list[Turn]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _sharegpt(row: Mapping[str, Any]) -> tuple[list[Turn], tuple[Mapping[str, Any], ...]]:
    turns = _system(row)
    for place, turn in enumerate(_list("conversations", row["conversations"])):
        where = f"conversations[{place}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or turn["from"] not in _SHAREGPT:
            raise UsageError(f"{where}.from: must be one of {', '.join(_SHAREGPT)}, given {turn!r:.100}")
        role, value = _SHAREGPT[turn["from"]], turn.get("value")
        if role == "function_call":
            try:
                call = json.loads(_text(f"{where}.value", value))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{where}.value: a call of a tool that is not JSON ({error})") from None
            calls = call if isinstance(call, list) else [call]
            turns.append(_turn(where, {"role": "assistant", "content": "", "tool_calls": calls}))
        else:
            turns.append(_turn(where, {"role": role, "content": _text(f"{where}.value", value)}))
    return turns, _tools(row.get("tools"))


def _telechat(row: Mapping[str, Any]) -> tuple[list[Turn], tuple[Mapping[str, Any], ...]]:
    turns = _system(row)
    for place, turn in enumerate(_list("dialog", row["dialog"])):
        where = f"dialog[{place}]"
        role = turn.get("role") if isinstance(turn, dict) else None
        if not isinstance(role, str) or role not in _TELECHAT:
            raise UsageError(f"{where}.role: must be one of {', '.join(_TELECHAT)}, given {turn!r:.100}")
        turns.append(_turn(where, {"role": _TELECHAT[role], "content": turn.get("content")}))
    return turns, ()


_READERS: dict[str, Callable[[Mapping[str, Any]], tuple[list[Turn], tuple[Mapping[str, Any], ...]]]] = {
    "messages": _openai,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "telechat": _telechat,
}


def _pair(row: Mapping[str, Any], where: str) -> AnswerPair:
    chosen, rejected = (_answer(name, row[name]) for name in ("chosen", "rejected"))
    if row.get("prompt") is None:  # as in the first public sets, which repeat the prompt in both answers
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise UsageError("chosen and rejected begin with different turns, and there is no prompt; add a prompt")
    elif isinstance(row["prompt"], str):
        prompt = [{"role": "user", "content": _filled("prompt", row["prompt"])}]
    else:
        prompt = [_turn(f"prompt[{i}]", turn) for i, turn in enumerate(_list("prompt", row["prompt"]))]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            raise UsageError(f"{name}: must begin and end with a turn of the assistant")
    if chosen == rejected:
        raise UsageError("chosen and rejected are the same, which teaches nothing; leave the row out")
    return AnswerPair(_in_order(prompt, to_the_user=True), tuple(chosen), tuple(rejected), where)


def _answer(name: str, value: Any) -> list[Turn]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": _filled(name, value)}]
    return [_turn(f"{name}[{place}]", turn) for place, turn in enumerate(_list(name, value))]


def _in_order(turns: list[Turn], to_the_user: bool = False) -> tuple[Turn, ...]:
    """Check the turns of one conversation: a system message only at the start, and a turn to answer before the
    answer."""
    roles = [turn["role"] for turn in turns]
    late = [place for place, role in enumerate(roles) if role == "system" and place > 0]
    if late:
        raise UsageError(f"turn {late[0]}: only the first turn can be a system message")
    if "user" not in roles:
        raise UsageError("has no user turn")
    if to_the_user and roles[-1] == "assistant":
        raise UsageError("prompt: must not end with a turn of the assistant")
    return tuple(turns)


def _system(row: Mapping[str, Any]) -> list[Turn]:
    text = _content("system", row.get("system"))
    return [{"role": "system", "content": text}] if text.strip() else []


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{where}: must be a list, given {value!r:.100}")
    if not value and where != "history":
        raise UsageError(f"{where}: is empty")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: must be text, given {value!r:.100}")
    return value


def _filled(where: str, value: Any) -> str:
    if not _text(where, value).strip():
        raise UsageError(f"{where}: is empty; leave the row out")
    return str(value)


# ---- writing --------------------------------------------------------------------------------------------------------


def _to_openai(one: Conversation) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": [dict(turn) for turn in one.messages]}
    return {**row, "tools": [dict(tool) for tool in one.tools]} if one.tools else row


def _to_alpaca(one: Conversation) -> dict[str, Any]:
    system, turns = _plain(one, "alpaca")
    asked, answered = turns[::2], turns[1::2]
    alternating = all(turn["role"] == "user" for turn in asked) and all(t["role"] == "assistant" for t in answered)
    if not alternating or len(turns) % 2:
        raise UsageError(
            f"{one.where}: its turns do not alternate, which format 'alpaca' cannot hold; write 'messages'"
        )
    pairs = [[q["content"], a["content"]] for q, a in zip(asked, answered, strict=True)]
    row: dict[str, Any] = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    return {**({"system": system} if system else {}), **row, **({"history": pairs[:-1]} if pairs[:-1] else {})}


def _to_sharegpt(one: Conversation) -> dict[str, Any]:
    turns = []
    for turn in one.messages:
        if turn.get("tool_calls"):
            if turn["content"].strip():
                turns.append({"from": "gpt", "value": turn["content"]})
            calls = [call["function"] for call in turn["tool_calls"]]
            value = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
            turns.append({"from": "function_call", "value": value})
        else:
            name = {"user": "human", "assistant": "gpt", "tool": "observation"}.get(turn["role"], turn["role"])
            turns.append({"from": name, "value": turn["content"]})
    row: dict[str, Any] = {"conversations": turns}
    return {**row, "tools": json.dumps([dict(t) for t in one.tools], ensure_ascii=False)} if one.tools else row


def _to_telechat(one: Conversation) -> dict[str, Any]:
    system, turns = _plain(one, "telechat")
    names = {"user": "user", "assistant": "bot"}
    return {"system": system, "dialog": [{"role": names[t["role"]], "content": t["content"]} for t in turns]}


def _plain(one: Conversation, kind: str) -> tuple[str, list[Turn]]:
    """The system message and the other turns of a conversation without tools."""
    if one.tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in one.messages):
        raise UsageError(f"{one.where}: calls tools, which format '{kind}' does not have; write 'messages'")
    turns = list(one.messages)
    return (turns.pop(0)["content"] if turns[0]["role"] == "system" else ""), turns


_WRITERS: dict[str, Callable[[Conversation], dict[str, Any]]] = {
    "messages": _to_openai,
    "alpaca": _to_alpaca,
    "sharegpt": _to_sharegpt,
    "telechat": _to_telechat,
}
