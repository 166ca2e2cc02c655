"""The bodies of requests: their fields, the allowed values, and the requests to the engine.

An unsupported field that would change the answer is refused unless its value is neutral. Fields
without an effect on the answer (``user``, ``metadata``, …) are ignored.
"""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from armillary.generate import Sampling, guide
from armillary.recipe import UsageError
from armillary.serve.engine import Ask, Chat
from armillary.serve.errors import ApiError
from armillary.serve.tools import CLOSE, OPEN, for_template

_LARGEST_N = 128
_MOST_ANSWERS = 512  # per request
_MOST_STOPS, _LONGEST_STOP = 16, 500
_MOST_SCORES = 20
# Known but unsupported fields, with the values that have no effect.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "ignore_eos": (False,),
}
_IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "prediction", "safety_identifier", "prompt_cache_key", "verbosity"}
)


class _JsonSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: str | None = None
    document: dict[str, Any] = Field(alias="schema")


class _ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool = False


class _Body(BaseModel):
    """The fields that both endpoints have."""

    model_config = ConfigDict(extra="forbid", strict=True)
    default_tokens: ClassVar[int | None] = None

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    n: int | None = Field(None, ge=1, le=_LARGEST_N)
    seed: int | None = None
    stop: list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, given: Any) -> Any:
        stops = [given] if isinstance(given, str) else given
        if isinstance(stops, list):
            if len(stops) > _MOST_STOPS:
                raise ValueError(f"{len(stops)} strings, but the maximum is {_MOST_STOPS}")
            if any(isinstance(one, str) and not 0 < len(one) <= _LONGEST_STOP for one in stops):
                raise ValueError(f"a stop string must have 1 to {_LONGEST_STOP} characters")
        return stops

    def sampling(self, tokens: int | None, context: int) -> Sampling:
        """The sampling options; without ``tokens`` an answer may fill the context."""
        return Sampling(
            max_new_tokens=max(context if tokens is None else tokens, 1),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            stop=tuple(self.stop or ()),
            seed=secrets.randbits(31) if self.seed is None else self.seed,
            n=self.n or 1,
        )

    def grammar(self) -> str | None:
        """The grammar of ``response_format``; None if any text is an answer.

        Raises:
            ApiError: a schema that is missing, or that has a feature which is not supported.
        """
        form = self.response_format
        if form is None or form.type == "text":
            return None
        schema: dict[str, Any] = {"type": "object"}
        if form.type == "json_schema":
            if form.json_schema is None:
                where = "response_format.json_schema"
                raise ApiError(400, f"{where} is missing", where, "missing_required_parameter")
            schema = form.json_schema.document
        return _grammar("response_format", guide.json_grammar, schema)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(_Body):
    """The body of ``/v1/completions``."""

    prompt: list[str | tuple[int, ...]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=_MOST_SCORES)

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, given: Any) -> Any:
        prompts = [given] if isinstance(given, str) or (isinstance(given, list) and _are_tokens(given)) else given
        if not isinstance(prompts, list) or not prompts:
            raise ValueError("give text, a list of token ids, or a list of these")
        if len(prompts) > _LARGEST_N:
            raise ValueError(f"{len(prompts)} prompts, but the maximum is {_LARGEST_N}; send several requests")
        read = list[Any]()
        for place, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                read.append(prompt)
            elif isinstance(prompt, list) and _are_tokens(prompt):
                read.append(tuple(prompt))
            else:
                raise ValueError(f"prompt {place + 1} is neither text nor a list of token ids")
        return read

    def ask(self, context: int) -> Ask:
        """The request to the engine.

        Raises:
            ApiError: too many answers, or an answer of no tokens without the prompt.
        """
        tokens = 16 if self.max_tokens is None else self.max_tokens
        if len(self.prompt) * (self.n or 1) > _MOST_ANSWERS:
            raise ApiError(
                400,
                f"n: {len(self.prompt) * (self.n or 1)} answers in total, but the maximum is {_MOST_ANSWERS}; send "
                "several requests",
                "n",
            )
        if not tokens and not self.echo:
            raise ApiError(400, "max_tokens: 0 needs echo; give 1 or more", "max_tokens")
        return Ask(
            tuple(self.prompt),
            self.sampling(tokens, context),
            bool(self.stream),
            self.logprobs,
            bool(self.echo),
            answer=tokens > 0,
            grammar=self.grammar(),
            shaped_by="response_format",
        )


def _grammar(param: str, write: Callable[..., str], *given: Any) -> str:
    """The grammar that ``write`` makes of ``given``, the value of the field ``param``."""
    try:
        return write(*given)
    except (UsageError, ValueError, RecursionError) as error:
        raise ApiError(400, f"{param}: {error}", param, "unsupported_parameter") from error


def _are_tokens(given: list[Any]) -> bool:
    return bool(given) and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in given)


class _Function(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: str = Field(min_length=1)


class _Tool(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["function"]
    function: _Function


class _CalledFunction(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: str
    arguments: str


class _ToolCall(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    id: str | None = None
    type: Literal["function"] = "function"
    function: _CalledFunction


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        texts = []
        for part in given:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else part
                raise ValueError(f"a part of type {kind!r}; this model reads only parts of type 'text'")
            texts.append(part["text"])
        return "".join(texts)


class ChatBody(_Body):
    """The body of ``/v1/chat/completions``."""

    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_SCORES)
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools that the model may call."""
        return [] if self.tool_choice == "none" else [tool.function.name for tool in self.tools or ()]

    def ask(self, context: int) -> Ask:
        """The request to the engine.

        Raises:
            ApiError: fields that contradict each other, or a grammar that is not supported.
        """
        grammar, shaped_by = self.grammar(), "response_format"
        if (forced := self._forced()) is not None:
            if grammar is not None:
                raise ApiError(400, "tool_choice: forces a call, so response_format must be text", "tool_choice")
            grammar, shaped_by = _grammar("tool_choice", guide.call_grammar, forced, (OPEN, CLOSE)), "tool_choice"
        elif grammar is not None and self.tool_names:
            raise ApiError(400, "response_format: a JSON answer cannot call tools; leave out tools", "response_format")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        tokens = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        if tokens == 0:
            raise ApiError(400, "max_tokens must be 1 or more", "max_tokens")
        tools = tuple(tool.model_dump() for tool in self.tools or ()) if self.tool_names else ()
        messages = tuple(self._plain(place) for place in range(len(self.messages)))
        return Ask(
            (Chat(messages, tools, self.chat_template_kwargs or {}),),
            self.sampling(tokens, context),
            bool(self.stream),
            (self.top_logprobs or 0) if self.logprobs else None,
            grammar=grammar,
            shaped_by=shaped_by,
        )

    def _forced(self) -> list[dict[str, Any]] | None:
        """The tools of which one must be called; None if the model decides."""
        choice = self.tool_choice
        if choice in (None, "auto", "none"):
            return None
        tools = [tool.model_dump() for tool in self.tools or ()]
        if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("function"), dict):
            tools = [tool for tool in tools if tool["function"]["name"] == choice["function"].get("name")]
        elif choice != "required":
            raise ApiError(400, "tool_choice: give auto, none, required, or the function to call", "tool_choice")
        if not tools:
            raise ApiError(400, "tool_choice: names a tool that is not in tools", "tool_choice")
        return tools

    def _plain(self, place: int) -> dict[str, Any]:
        """A message in the form that chat templates expect."""
        message = self.messages[place]
        where = f"messages[{place}]"
        plain = message.model_dump(exclude_none=True)
        plain["role"] = "system" if message.role == "developer" else message.role
        plain.setdefault("content", "")
        if message.tool_calls is not None:
            if message.role != "assistant":
                raise ApiError(400, f"{where}: only an assistant calls tools", f"{where}.tool_calls")
            try:
                plain["tool_calls"] = for_template(plain["tool_calls"])
            except (ValueError, RecursionError) as error:
                raise ApiError(400, f"{where}.tool_calls: {error}", f"{where}.tool_calls") from error
        elif message.content is None:
            raise ApiError(400, f"{where}.content is missing", f"{where}.content")
        return plain


def read_body(data: bytes, kind: type[CompletionBody] | type[ChatBody]) -> CompletionBody | ChatBody:
    """The checked body of a request.

    Raises:
        ApiError: not a JSON object, or a field that is unknown, invalid or not supported; the error names it.
    """
    document = read_object(data)
    given = {name: value for name, value in document.items() if name not in _IGNORED}
    for name, neutral in _NEUTRAL.items():
        value = given.pop(name, None)
        if value is not None and value not in neutral:
            raise ApiError(400, f"{name}: not supported by this server; leave it out", name, "unsupported_parameter")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _named(error, kind) from error


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: it is not a JSON object.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(document, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return document


def _named(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    first = error.errors(include_url=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), kind.model_fields, 1)
        message = f"unknown field{f'; nearest: {near[0]}' if near else ''}"
        return ApiError(400, f"{param}: {message}", param, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing", param, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return ApiError(400, f"{param}: {message}", param, "invalid_value")
