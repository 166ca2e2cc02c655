"""Models behind a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp's server, a vendor.

Several requests are under way at a time. What passes by itself (status 408, 409, 429 and 5xx, a timeout, a dropped
connection, half an answer) is retried with growing waits of random length; ``Retry-After`` is honoured. What does not
pass is raised as it is; answers that were under way are finished first, since they are paid for.

The key comes from an environment variable. It is sent to the server that was named and nowhere else: redirects are not
followed. It is in no message, no exception, no identity and no cache, even where the server repeats it.

Not covered: whether a server's answers depend on its load. Most sum in batches of changing size, so that two runs can
differ at temperature 0, and a seed is honoured as well as the server can. The cache gives the same answer again.
"""

from __future__ import annotations

import email.utils
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx2

from armillary.generate.backend import (
    Backend,
    BadRequestError,
    Choice,
    Completion,
    Cost,
    Likelihood,
    Pair,
    Request,
    RequestError,
    fit_pair,
    fit_prompt,
    split_pair,
)
from armillary.generate.registry import BackendOptions, register
from armillary.generate.stops import before_stop, safe_end
from armillary.generate.text import ModelText
from armillary.generate.threads import as_finished
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    UsageError,
    canonical_hash,
    read_sealed,
    without_passwords,
    write_sealed,
)

CACHE_FORMAT = 1

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONCURRENCY = 16
_CONNECT_S = 30.0
_FIRST_WAIT_S = 0.5  # doubles with each try
_LONGEST_WAIT_S = 60.0
_LONGEST_ASKED_WAIT_S = 600.0  # a server that asks for more has no room today
_LARGEST_ANSWER = 64 * 2**20  # bytes
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_STOPPED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "content_filter"})
_LOGGERS = ("httpx2", *(f"httpcore2.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")))
_CUT = frozenset({"length", "max_tokens"})


@dataclass(frozen=True)
class _Failure:
    """Why a try failed; ``wait_s`` is what the server asks for, ``passing`` says whether another try may succeed."""

    problem: str
    passing: bool
    wait_s: float = 0.0
    status: int = 0


@dataclass(frozen=True)
class _Call:
    """One call of the server: where, with what (None only asks), and for which request or pair."""

    url: str
    body: dict[str, Any] | None
    index: int = 0
    what: str = "request"


class _Masking(logging.Filter):
    """Takes the key out of what the HTTP library logs, such as the headers with which a server repeats it."""

    def __init__(self, masked: Callable[[str], str]) -> None:
        super().__init__()
        self._masked = masked

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes, without the key."""
        record.msg, record.args = self._masked(record.getMessage()), ()
        return True


class EndpointBackend:
    """The server at ``url`` (``https://host/v1``). ``batch_size`` is the number of requests under way at a time.

    Raises:
        UsageError: a URL that is none, or holds a password or a query; a key that cannot stand in a header.
        ArmillaryError: no model was named, and the server does not have exactly one.
    """

    def __init__(self, url: str, options: BackendOptions) -> None:
        self._options, self._own = options, options.endpoint
        self._url = _base(url)
        self._key = os.environ.get(self._own.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise UsageError(
                f"the environment variable {self._own.key_variable} holds what no key has (spaces, line ends or "
                "characters beyond ASCII); set it to the key alone"
            )
        self._concurrency = options.batch_size or _CONCURRENCY
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self._own.timeout_s, connect=min(_CONNECT_S, self._own.timeout_s), pool=None),
            limits=httpx2.Limits(max_connections=self._concurrency),
            follow_redirects=False,
        )
        self._masking = _Masking(self._masked)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._masking)
        self._text = None if options.tokenizer is None else _text(options.tokenizer)
        self._cost = Cost(money=None if self._own.prices is None else 0.0)
        self._counting = threading.Lock()
        self._model = self._own.model or self._only_model()

    @property
    def identity(self) -> dict[str, Any]:
        """The URL and the model's name there, and what is sent with each request."""
        return {
            "backend": "endpoint",
            "url": self._url,
            "model": self._model,
            "api": self._own.api,
            "extra": self._own.extra,
        }

    @property
    def context(self) -> int:
        """The longest sequence in tokens: as given, else as the server says.

        Raises:
            UsageError: neither.
        """
        if self._options.context is not None:
            return self._options.context
        for model in self._models():
            meta = model.get("meta") or {}
            for length in (model.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train")):
                if model.get("id") == self._model and isinstance(length, int):
                    return length
        raise UsageError(f"{self._url}: the server does not say how long a context {self._model} has; give it")

    @property
    def cost(self) -> Cost:
        """What was used so far, as the server counts it. ``seconds`` is the time in which this backend was at work."""
        return replace(self._cost)

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields the completion of each request as soon as it is there.

        Raises:
            BadRequestError: messages for an endpoint that only continues text.
            RequestError: one failed for good, after those under way were yielded.
            ArmillaryError: the cache cannot be written.
        """

        def work(item: tuple[int, Request], stopping: threading.Event) -> tuple[Completion, str | None]:
            index, request = item
            call, cut = self._call(index, request)
            found, problem = self._ask(call, lambda document: _completion(index, request, document), stopping)
            return replace(found, cut=cut), problem

        yield from self._work(work, enumerate(requests))

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each continuation, from the log probabilities of a prompt that the server echoes.

        Raises:
            ArmillaryError: the server does not give them, or does not cut text into tokens.
        """

        def work(item: tuple[int, Pair], stopping: threading.Event) -> tuple[tuple[int, Likelihood], str | None]:
            number, pair = item
            start = None if self._text is None else self._text.first
            parts = split_pair(pair, self._encode, start, number)
            before, after, cut = fit_pair(parts, pair.last_tokens, None, number)
            body: dict[str, Any] = {
                "prompt": before + after,
                "max_tokens": 1,
                "temperature": 0,
                "echo": True,
                "logprobs": 1,
            }
            call = self._post("/completions", body, number, "pair")
            found, problem = self._ask(call, lambda document: _likelihood(document, before, after), stopping)
            return (number, replace(found, cut=cut)), problem

        found = dict(self._work(work, enumerate(pairs)))
        return [found[number] for number in range(len(pairs))]

    def tokenize(self, text: str) -> list[int]:
        """The token ids of ``text``, without special tokens added.

        Raises:
            ArmillaryError: no tokenizer was given, and the server does not cut text into tokens.
        """
        return self._encode(text, False)

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Yields the text of the first answer piece by piece, and returns the completion.

        Where the server does not stream, or fails before the first piece, the answer is asked for as by ``complete``.

        Raises:
            ArmillaryError: the request failed for good, or the connection was lost in the middle of the answer.
        """
        begun = time.monotonic()
        call, cut = self._call(0, request)
        streamed = {**(call.body or {}), "stream": True, "stream_options": {"include_usage": True}}
        events = self._events(replace(call, body=streamed))
        texts, finishes, usage, said = dict[int, str](), dict[int, Any](), None, 0
        for event in events:
            if isinstance(event, _Failure):
                if said:
                    raise ArmillaryError(f"{self._url}: {event.problem} in the middle of the answer; ask again")
                texts.clear()
                break
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                number = choice.get("index", 0)
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                texts[number] = texts.get(number, "") + piece
                finishes[number] = choice.get("finish_reason") or finishes.get(number)
            end = safe_end(texts.get(0, ""), request.sampling.stop)
            if end > said:
                yield texts[0][said:end]
                said = end
        choices = [{"index": n, "text": text, "finish_reason": finishes[n]} for n, text in sorted(texts.items())]
        completion = _completion(0, request, {"choices": choices, "usage": usage})
        if isinstance(completion, _Failure):
            if said:
                raise ArmillaryError(f"{self._url}: {completion.problem}; ask again")
            (completion,) = self.complete([request])
        else:
            self._count({"choices": choices, "usage": usage})
            self._cost.seconds += time.monotonic() - begun
        yield completion.choices[0].text[said:]
        return replace(completion, cut=cut)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._masking)

    def _call(self, index: int, request: Request) -> tuple[_Call, int]:
        """What is sent for a request, and the number of tokens that were cut from its prompt."""
        sampling, prompt, cut = request.sampling, request.prompt, 0
        body: dict[str, Any] = {}
        if isinstance(prompt, str) and self._own.api != "chat":
            path, body["prompt"] = "/completions", prompt
            if request.last_tokens is not None:
                body["prompt"], cut = fit_prompt(self._encode(prompt, True), request.last_tokens, None, index)
        elif request.last_tokens is not None:
            raise BadRequestError(index, "messages of a chat cannot be cut before they reach a server; shorten them")
        elif self._own.api != "completions":
            path = "/chat/completions"
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(asdict, prompt)
            body["messages"] = list(messages)
        else:
            raise BadRequestError(
                index, "messages need the chat interface, and this endpoint was opened for completions"
            )
        body |= {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        # Vendors refuse fields that they do not know: only what makes a difference is sent.
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": sampling.seed}
            if sampling.top_k is not None:
                body["top_k"] = sampling.top_k
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.n > 1:
            body["n"] = sampling.n
        return self._post(path, body, index, "request"), cut

    def _post(self, path: str, body: dict[str, Any], index: int, what: str) -> _Call:
        whole = {"model": self._model, **body, **self._own.extra}
        # A field of `extra` that is null is one that this server does not take.
        return _Call(self._url + path, {name: value for name, value in whole.items() if value is not None}, index, what)

    def _work(
        self, work: Callable[[Item, threading.Event], tuple[Result, str | None]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """What ``work`` gives, as it comes; a problem that it names is raised after its result was taken."""
        begun = time.monotonic()
        for result, problem in as_finished(work, items, self._concurrency):
            self._cost.seconds += time.monotonic() - begun
            yield result
            if problem is not None:
                raise ArmillaryError(problem)
            begun = time.monotonic()

    def _ask(
        self, call: _Call, parse: Callable[[dict[str, Any]], Result | _Failure], stopping: threading.Event
    ) -> tuple[Result, str | None]:
        """What ``parse`` makes of the answer, from the cache or the server, and why it could not be kept.

        Raises:
            ArmillaryError: the last try failed, or no other may help.
        """
        kept = self._cache_file(call)
        if kept is not None and (document := _read_cache(kept)) is not None:
            result = parse(document)
            if not isinstance(result, _Failure):
                return result, None
        for number in range(self._own.retries + 1):
            answer = self._try(call)
            if not isinstance(answer, _Failure):
                self._count(answer)
                result = parse(answer)
                if not isinstance(result, _Failure):
                    return result, None if kept is None else self._write_cache(kept, call, answer)
                answer = result
            tries = f" ({number + 1} tries)" if number else ""
            failed = f"{call.url}: {answer.problem}{tries}"
            if answer.passing and answer.wait_s > _LONGEST_ASKED_WAIT_S:
                failed += f"; the server asks to wait {answer.wait_s:.0f} s: run the same command again after that"
                break
            if not answer.passing:
                break
            if number < self._own.retries:
                wait = min(_FIRST_WAIT_S * 2**number, _LONGEST_WAIT_S) * random.uniform(0.5, 1)
                if stopping.wait(max(wait, answer.wait_s)):
                    break
        raise RequestError(call.index, failed, call.what)

    def _try(self, call: _Call) -> dict[str, Any] | _Failure:
        """The JSON object of one try. No exception leaves: those of the library hold the request and its key."""
        deadline = time.monotonic() + self._own.timeout_s
        try:
            with self._client.stream("GET" if call.body is None else "POST", call.url, json=call.body) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _LARGEST_ANSWER:
                        return _Failure(f"the answer is longer than {_LARGEST_ANSWER >> 20} MiB", False)
                    if time.monotonic() > deadline:
                        return _Failure(f"no whole answer within {self._own.timeout_s:g} s", True)
        except UnicodeEncodeError:
            return _Failure("the text holds half of a surrogate pair, which has no UTF-8 form", False)
        except httpx2.HTTPError as error:
            return self._lost(error)
        text = self._masked(body.decode("utf-8", "replace"))
        if response.status_code != 200:
            return self._refused(response, text)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            return _Failure(f"the answer is no JSON object: {_short(text)}", True)
        return document

    def _events(self, call: _Call) -> Iterator[dict[str, Any] | _Failure]:
        """The events of a streamed answer; the last one is a failure where it is not whole."""
        try:
            with self._client.stream("POST", call.url, json=call.body) as response:
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or not kind.startswith("text/event-stream"):
                    yield _Failure("the server does not stream", True)
                    return
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        data = self._masked(line.removeprefix("data:").strip())
                        if data == "[DONE]":
                            return
                        event = json.loads(data)
                        yield event if isinstance(event, dict) else _Failure("an event is no JSON object", True)
        except (ValueError, RecursionError):
            problem = _Failure("an event is no JSON", True)
        except httpx2.HTTPError as error:
            problem = self._lost(error)
        else:
            problem = _Failure("the stream ended early", True)
        yield problem

    def _lost(self, error: httpx2.HTTPError) -> _Failure:
        """A connection that gave no whole answer."""
        if isinstance(error, httpx2.TimeoutException):
            return _Failure(f"no answer within {self._own.timeout_s:g} s", True)
        said = " ".join(self._masked(str(error)).split()) or type(error).__name__
        passing = isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError | httpx2.DecodingError)
        return _Failure(f"the connection failed ({said})", passing)

    def _refused(self, response: httpx2.Response, text: str) -> _Failure:
        """A status other than 200, in words."""
        status = response.status_code
        if 300 <= status < 400:
            to = self._masked(response.headers.get("location", "nowhere"))
            return _Failure(
                f"the server redirects to {_short(to)}; the key is not sent there: give that URL itself", False
            )
        said = _short(_message(text))
        if status in (401, 403):
            variable = self._own.key_variable
            advice = f"check the key in {variable}" if self._key else f"set the environment variable {variable}"
            return _Failure(f"status {status} ({said}); {advice}", False)
        if status == 404:
            return _Failure(f"status 404 ({said}); check the URL and the name of the model, {self._model!r}", False)
        return _Failure(f"status {status} ({said})", status in _PASSING, _retry_after(response.headers))

    def _count(self, document: dict[str, Any]) -> None:
        """Adds what an answer cost; what has no choices cost nothing."""
        if "choices" not in document:
            return
        prompt, new = _usage(document)
        with self._counting:
            self._cost.prompt_tokens += prompt
            self._cost.new_tokens += new
            prices = self._own.prices
            if not isinstance(document.get("usage"), dict):
                self._cost.money = None  # a sum with a part missing is none
            elif prices is not None and self._cost.money is not None:
                self._cost.money += (prompt * prices.prompt + new * prices.answer) / 1e6

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _cache_file(self, call: _Call) -> Path | None:
        if self._own.cache is None:
            return None
        key = canonical_hash({"url": call.url, "body": call.body})
        return self._own.cache / key[:2] / f"{key}.json"

    def _write_cache(self, path: Path, call: _Call, answer: dict[str, Any]) -> str | None:
        """Keeps an answer; what went wrong, where it could not."""
        try:
            write_sealed(
                path,
                {"format": CACHE_FORMAT, "url": call.url, "body": call.body, "answer": answer},
            )
        except (OSError, ValueError) as error:
            return f"{path}: the answer cannot be kept ({error}); make room, or name another cache"
        return None

    def _encode(self, text: str, special: bool) -> list[int]:
        if self._text is not None:
            return self._text.encode(text, special)
        # vLLM and SGLang read the first two of these fields, llama.cpp the others.
        body = {"prompt": text, "add_special_tokens": special, "content": text, "add_special": special}
        url = self._url.removesuffix("/v1") + "/tokenize"
        try:
            tokens, _ = self._ask(_Call(url, {"model": self._model, **body}), _tokens, threading.Event())
        except RequestError as error:
            raise ArmillaryError(
                f"the server does not cut text into tokens ({error.problem}); name the tokenizer of the model, "
                "a folder with its tokenizer.json"
            ) from None
        return tokens

    def _models(self) -> list[dict[str, Any]]:
        """What the server says of its models; empty where it says nothing."""
        found = self._try(_Call(f"{self._url}/models", None))
        models = found.get("data") if isinstance(found, dict) else None
        return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []

    def _only_model(self) -> str:
        found = self._try(_Call(f"{self._url}/models", None))
        if isinstance(found, _Failure):
            raise ArmillaryError(f"{self._url}/models: {found.problem}; name the model, or check the URL")
        names = [str(model.get("id")) for model in self._models()]
        if len(names) != 1:
            raise ArmillaryError(
                f"{self._url} has {len(names)} models; name one of them"
                + (f": {', '.join(names[:10])}" if names else "")
            )
        return names[0]


@register(
    "endpoint",
    lambda target: "://" in target,
    {"batch_size", "context", "tokenizer", "endpoint"},
)
def open_endpoint(target: str, options: BackendOptions) -> Backend:
    """The URL of a server that speaks OpenAI's API."""
    return EndpointBackend(target, options)


def _base(url: str) -> str:
    """The URL up to and with ``/v1``, however much of it was given."""
    try:
        parsed = httpx2.URL(url.strip())
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{without_passwords(url)!r} is no URL of a server; give one such as https://host/v1")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            f"the URL of {parsed.host} holds a user, a password or a query; give it as https://host/v1, and the key in "
            "an environment variable"
        )
    path = parsed.path.rstrip("/")
    for suffix in ("/chat/completions", "/completions"):
        path = path.removesuffix(suffix)
    return str(parsed.copy_with(path=path or "/v1"))


def _text(path: Path) -> ModelText:
    """A folder with a tokenizer, or its ``tokenizer.json``."""
    return ModelText.from_folder(path.parent if path.name == "tokenizer.json" else path)


def _completion(index: int, request: Request, document: dict[str, Any]) -> Completion | _Failure:
    """The completion in a server's answer."""
    sampling, given = request.sampling, document.get("choices")
    if not isinstance(given, list) or not all(isinstance(choice, dict) for choice in given):
        return _Failure(f"the answer has no choices: {_short(_message(json.dumps(document)))}", True)
    if len(given) != sampling.n:
        advice = "" if sampling.n == 1 else "; ask for the answers one by one, each with a seed of its own"
        return _Failure(f"{len(given)} choices came where {sampling.n} were asked for{advice}", False)
    texts, finishes = list[str](), list[Literal["stop", "length"]]()
    for choice in sorted(given, key=lambda choice: choice["index"] if isinstance(choice.get("index"), int) else 0):
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        finish = choice.get("finish_reason")
        # A message without content: a refusal, or a model that only thought until it was cut.
        text = "" if text is None and isinstance(message, dict) else text
        if not isinstance(text, str) or finish not in _STOPPED | _CUT:
            return _Failure(f"a choice is not whole: {_short(json.dumps(choice, ensure_ascii=False))}", True)
        whole = before_stop(text, sampling.stop)
        texts.append(whole)
        finishes.append("length" if finish in _CUT and whole == text else "stop")
    prompt_tokens, new_tokens = _usage(document)
    lengths = _shares(new_tokens, [len(text) for text in texts])
    return Completion(index, tuple(map(Choice, texts, lengths, finishes)), prompt_tokens)


def _likelihood(document: dict[str, Any], before: list[int], after: list[int]) -> Likelihood | _Failure:
    """The likelihood in the answer to an echoed prompt."""
    end = len(before) + len(after)
    try:
        logprobs = document["choices"][0]["logprobs"]
        values = [float(value) for value in logprobs["token_logprobs"][len(before) : end]]
        best = [max(map(float, top.values())) for top in logprobs["top_logprobs"][len(before) : end]]
    except (LookupError, TypeError, ValueError, AttributeError):
        values = best = []
    if len(values) != len(after) or len(best) != len(after):
        return _Failure(
            "the server does not give the log probabilities of a prompt (echo and logprobs of /v1/completions), which "
            "scoring of given answers needs; take a server that does (vLLM, SGLang), the model's own folder, or tasks "
            "in which the model writes its answer",
            False,
        )
    return Likelihood(sum(values), len(after), all(own >= top for own, top in zip(values, best, strict=True)))


def _tokens(document: dict[str, Any]) -> list[int] | _Failure:
    tokens = document.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        return _Failure("no tokens came", False)
    return tokens


def _usage(document: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the answers; 0 where the server does not count."""
    usage = document.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, new = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    return prompt, new


def _shares(total: int, lengths: list[int]) -> list[int]:
    """``total`` tokens over answers by their length: servers count those of a request together."""
    if len(lengths) == 1:
        return [total]
    ends = [total * sum(lengths[: n + 1]) // max(sum(lengths), 1) for n in range(len(lengths))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _read_cache(path: Path) -> dict[str, Any] | None:
    """A kept answer; None where none can be read: it is asked for again, and writing it names the cause."""
    try:
        answer = read_sealed(path, "kept answer", CACHE_FORMAT, "remove it")["answer"]
    except (OSError, DamagedFileError, KeyError):
        return None
    return answer if isinstance(answer, dict) else None


def _message(text: str) -> str:
    """What a server says of an error."""
    with suppress(ValueError, RecursionError, AttributeError, TypeError):
        document = json.loads(text)
        error = document.get("error") or document.get("detail") or document.get("message")
        return str(error["message"] if isinstance(error, dict) and "message" in error else error or text)
    return text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[:300]}…" if len(text) > 300 else text or "nothing"


def _retry_after(headers: httpx2.Headers) -> float:
    """Seconds that the server asks to wait: a number, or until a date (RFC 9110, section 10.2.3)."""
    given = headers.get("retry-after", "")
    if given.strip()[:1].isdigit():
        with suppress(ValueError):
            return float(given)
    with suppress(ValueError, TypeError, OverflowError):
        return max(email.utils.parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
    return 0.0
