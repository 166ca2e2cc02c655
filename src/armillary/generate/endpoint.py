"""Models behind a server with OpenAI's API: vLLM, SGLang, llama.cpp's server, or a vendor.

Several requests run at a time. Transient failures (status 408, 409, 429 and 5xx, a timeout, a dropped connection, half
an answer) are retried with exponential backoff and jitter; ``Retry-After`` is honoured. Other failures are raised after
the requests in progress have finished, so that their paid answers are not lost.

The key comes from an environment variable. It is sent only to the given server; redirects are not followed. It never
appears in a message, an exception, an identity or a cache, even if the server repeats it.

Not covered: reproducible answers. Most servers compute in batches of varying size, so the answer to a repeated request
can differ even at temperature 0 or with a seed. Only the cache returns the same answer again.
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
_FIRST_WAIT_S = 0.5  # doubles with each attempt
_LONGEST_WAIT_S = 60.0
_LONGEST_ASKED_WAIT_S = 600.0  # a server that asks for a longer wait counts as unavailable
_LARGEST_ANSWER = 64 * 2**20  # bytes
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_STOPPED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "content_filter"})
_LOGGERS = ("httpx2", *(f"httpcore2.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")))
_CUT = frozenset({"length", "max_tokens"})


@dataclass(frozen=True)
class _Failure:
    """A failed attempt. ``passing``: whether a retry may succeed; ``wait_s``: the wait that the server requests."""

    problem: str
    passing: bool
    wait_s: float = 0.0
    status: int = 0


@dataclass(frozen=True)
class _Call:
    """One call of the server: path, body (None sends a GET), and the index of the request or pair."""

    url: str
    body: dict[str, Any] | None
    index: int = 0
    what: str = "request"


class _Masking(logging.Filter):
    """Removes the key from the HTTP library's logs, such as response headers that repeat it."""

    def __init__(self, masked: Callable[[str], str]) -> None:
        super().__init__()
        self._masked = masked

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass every record, without the key."""
        record.msg, record.args = self._masked(record.getMessage()), ()
        return True


class EndpointBackend:
    """The server at ``url`` (``https://host/v1``). ``batch_size`` is the number of concurrent requests.

    Raises:
        UsageError: an invalid URL, or one with a password or a query; a key that is not valid in a header.
        ArmillaryError: no model was named, and the server does not have exactly one.
    """

    def __init__(self, url: str, options: BackendOptions) -> None:
        self._options, self._own = options, options.endpoint
        self._url = _base(url)
        self._key = os.environ.get(self._own.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise UsageError(
                f"the environment variable {self._own.key_variable} is not a valid key: it has spaces, line ends or "
                "characters beyond ASCII; set it to the key alone"
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
        """The URL, the model's name on the server, and the fields sent with each request."""
        return {
            "backend": "endpoint",
            "url": self._url,
            "model": self._model,
            "api": self._own.api,
            "extra": self._own.extra,
        }

    @property
    def context(self) -> int:
        """The longest sequence in tokens: the given value, else the server's.

        Raises:
            UsageError: neither is known.
        """
        if self._options.context is not None:
            return self._options.context
        for model in self._models():
            meta = model.get("meta") or {}
            for length in (model.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train")):
                if model.get("id") == self._model and isinstance(length, int):
                    return length
        raise UsageError(f"{self._url}: the server does not report the context of {self._model}; give it")

    @property
    def cost(self) -> Cost:
        """The cost so far, as counted by the server. ``seconds`` is the time in which this backend was active."""
        return replace(self._cost)

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield the completion of each request as soon as it arrives.

        Raises:
            BadRequestError: messages for an endpoint that only continues text.
            RequestError: a request failed for good; requests in progress were yielded first.
            ArmillaryError: the cache cannot be written.
        """

        def work(item: tuple[int, Request], stopping: threading.Event) -> tuple[Completion, str | None]:
            index, request = item
            call, cut = self._call(index, request)
            found, problem = self._ask(call, lambda document: _completion(index, request, document), stopping)
            return replace(found, cut=cut), problem

        yield from self._work(work, enumerate(requests))

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each continuation, from the log probabilities of the prompt that the server echoes.

        Raises:
            ArmillaryError: the server does not return them, or does not tokenize text.
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
            ArmillaryError: no tokenizer was given, and the server does not tokenize text.
        """
        return self._encode(text, False)

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Yield the text of the first answer piece by piece, and return the completion.

        If the server does not stream, or fails before the first piece, the answer is requested as in ``complete``.

        Raises:
            ArmillaryError: the request failed for good, or the connection was lost during the answer.
        """
        begun = time.monotonic()
        call, cut = self._call(0, request)
        streamed = {**(call.body or {}), "stream": True, "stream_options": {"include_usage": True}}
        events = self._events(replace(call, body=streamed))
        texts, finishes, usage, sent = dict[int, str](), dict[int, Any](), None, 0
        for event in events:
            if isinstance(event, _Failure):
                if sent:
                    raise ArmillaryError(f"{self._url}: {event.problem} during the answer; try again")
                texts.clear()
                break
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                number = choice.get("index", 0)
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                texts[number] = texts.get(number, "") + piece
                finishes[number] = choice.get("finish_reason") or finishes.get(number)
            end = safe_end(texts.get(0, ""), request.sampling.stop)
            if end > sent:
                yield texts[0][sent:end]
                sent = end
        choices = [{"index": n, "text": text, "finish_reason": finishes[n]} for n, text in sorted(texts.items())]
        completion = _completion(0, request, {"choices": choices, "usage": usage})
        if isinstance(completion, _Failure):
            if sent:
                raise ArmillaryError(f"{self._url}: {completion.problem}; try again")
            (completion,) = self.complete([request])
        else:
            self._count({"choices": choices, "usage": usage})
            self._cost.seconds += time.monotonic() - begun
        yield completion.choices[0].text[sent:]
        return replace(completion, cut=cut)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._masking)

    def _call(self, index: int, request: Request) -> tuple[_Call, int]:
        """The body to send for a request, and the number of tokens cut from its prompt."""
        sampling, prompt, cut = request.sampling, request.prompt, 0
        body: dict[str, Any] = {}
        if isinstance(prompt, str) and self._own.api != "chat":
            path, body["prompt"] = "/completions", prompt
            if request.last_tokens is not None:
                body["prompt"], cut = fit_prompt(self._encode(prompt, True), request.last_tokens, None, index)
        elif request.last_tokens is not None:
            raise BadRequestError(index, "chat messages cannot be cut before they reach a server; shorten them")
        elif self._own.api != "completions":
            path = "/chat/completions"
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(asdict, prompt)
            body["messages"] = list(messages)
        else:
            raise BadRequestError(
                index, "messages need the chat interface, but this endpoint was opened for completions"
            )
        body |= {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        # Vendors reject unknown fields, so only fields that differ from the default are sent.
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
        # A null in `extra` removes a field that this server does not accept.
        return _Call(self._url + path, {name: value for name, value in whole.items() if value is not None}, index, what)

    def _work(
        self, work: Callable[[Item, threading.Event], tuple[Result, str | None]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Yield the results of ``work`` as they arrive; if a result comes with a problem, raise it after the result."""
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
        """The parsed answer, from the cache or the server, and the problem if it could not be written to the cache.

        Raises:
            ArmillaryError: the last attempt failed, or a retry would not help.
        """
        cache = self._cache_file(call)
        if cache is not None and (document := _read_cache(cache)) is not None:
            result = parse(document)
            if not isinstance(result, _Failure):
                return result, None
        for number in range(self._own.retries + 1):
            answer = self._try(call)
            if not isinstance(answer, _Failure):
                self._count(answer)
                result = parse(answer)
                if not isinstance(result, _Failure):
                    return result, None if cache is None else self._write_cache(cache, call, answer)
                answer = result
            tries = f" ({number + 1} attempts)" if number else ""
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
        """The JSON object of one attempt. It never raises, because the library's exceptions contain the key."""
        deadline = time.monotonic() + self._own.timeout_s
        try:
            with self._client.stream("GET" if call.body is None else "POST", call.url, json=call.body) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _LARGEST_ANSWER:
                        return _Failure(f"the answer is longer than {_LARGEST_ANSWER >> 20} MiB", False)
                    if time.monotonic() > deadline:
                        return _Failure(f"no complete answer within {self._own.timeout_s:g} s", True)
        except UnicodeEncodeError:
            return _Failure("the text contains a lone surrogate, which has no UTF-8 form", False)
        except httpx2.HTTPError as error:
            return self._lost(error)
        text = self._without_key(body.decode("utf-8", "replace"))
        if response.status_code != 200:
            return self._refused(response, text)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            return _Failure(f"the answer is not a JSON object: {_short(text)}", True)
        return document

    def _events(self, call: _Call) -> Iterator[dict[str, Any] | _Failure]:
        """The events of a streamed answer; the last one is a failure if the answer is incomplete."""
        try:
            with self._client.stream("POST", call.url, json=call.body) as response:
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or not kind.startswith("text/event-stream"):
                    yield _Failure("the server does not stream", True)
                    return
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        data = self._without_key(line.removeprefix("data:").strip())
                        if data == "[DONE]":
                            return
                        event = json.loads(data)
                        yield event if isinstance(event, dict) else _Failure("an event is not a JSON object", True)
        except (ValueError, RecursionError):
            problem = _Failure("an event is not JSON", True)
        except httpx2.HTTPError as error:
            problem = self._lost(error)
        else:
            problem = _Failure("the stream ended early", True)
        yield problem

    def _lost(self, error: httpx2.HTTPError) -> _Failure:
        """The failure of a connection without a complete answer."""
        if isinstance(error, httpx2.TimeoutException):
            return _Failure(f"no answer within {self._own.timeout_s:g} s", True)
        reason = " ".join(self._masked(str(error)).split()) or type(error).__name__
        passing = isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError | httpx2.DecodingError)
        return _Failure(f"the connection failed ({reason})", passing)

    def _refused(self, response: httpx2.Response, text: str) -> _Failure:
        """The failure for a status other than 200."""
        status = response.status_code
        if 300 <= status < 400:
            to = self._masked(response.headers.get("location", "nowhere"))
            return _Failure(
                f"the server redirects to {_short(to)}; the key is not sent there: give that URL instead", False
            )
        reason = _short(_message(text))
        if status in (401, 403):
            variable = self._own.key_variable
            advice = f"check the key in {variable}" if self._key else f"set the environment variable {variable}"
            return _Failure(f"status {status} ({reason}); {advice}", False)
        if status == 404:
            return _Failure(f"status 404 ({reason}); check the URL and the name of the model, {self._model!r}", False)
        return _Failure(f"status {status} ({reason})", status in _PASSING, _retry_after(response.headers))

    def _count(self, document: dict[str, Any]) -> None:
        """Add the cost of an answer; a response without choices costs nothing."""
        if "choices" not in document:
            return
        prompt, new = _usage(document)
        with self._counting:
            self._cost.prompt_tokens += prompt
            self._cost.new_tokens += new
            prices = self._own.prices
            if not isinstance(document.get("usage"), dict):
                self._cost.money = None  # a sum with an unknown part is unknown
            elif prices is not None and self._cost.money is not None:
                self._cost.money += (prompt * prices.prompt + new * prices.answer) / 1e6

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _without_key(self, text: str) -> str:
        """A server's text without the key, also if its JSON escapes characters of the key."""
        plain = self._masked(text)
        if self._key and "\\" in plain:
            with suppress(ValueError, RecursionError):
                written = json.dumps(json.loads(plain), ensure_ascii=False)
                plain = written.replace(json.dumps(self._key)[1:-1], "***")
        return plain

    def _cache_file(self, call: _Call) -> Path | None:
        if self._own.cache is None:
            return None
        key = canonical_hash({"url": call.url, "body": call.body})
        return self._own.cache / key[:2] / f"{key}.json"

    def _write_cache(self, path: Path, call: _Call, answer: dict[str, Any]) -> str | None:
        """Write an answer to the cache; return the problem if that fails."""
        try:
            write_sealed(
                path,
                {"format": CACHE_FORMAT, "url": call.url, "body": call.body, "answer": answer},
            )
        except (OSError, ValueError) as error:
            return f"{path}: the answer cannot be cached ({error}); free some space, or name another cache"
        return None

    def _encode(self, text: str, special: bool) -> list[int]:
        if self._text is not None:
            return self._text.encode(text, special)
        # vLLM and SGLang read the first two of these fields, llama.cpp reads the others.
        body = {"prompt": text, "add_special_tokens": special, "content": text, "add_special": special}
        url = self._url.removesuffix("/v1") + "/tokenize"
        try:
            tokens, _ = self._ask(_Call(url, {"model": self._model, **body}), _tokens, threading.Event())
        except RequestError as error:
            raise ArmillaryError(
                f"the server does not tokenize text ({error.problem}); name the tokenizer of the model, "
                "a folder with its tokenizer.json"
            ) from None
        return tokens

    def _models(self) -> list[dict[str, Any]]:
        """The server's list of its models; empty if it has none."""
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
    """Open the server with OpenAI's API at the URL ``target``."""
    return EndpointBackend(target, options)


def _base(url: str) -> str:
    """The URL up to and including ``/v1``, which may be missing from ``url``."""
    try:
        parsed = httpx2.URL(url.strip())
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{without_passwords(url)!r} is not the URL of a server; give one such as https://host/v1")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            f"the URL of {parsed.host} has a user, a password or a query; give it as https://host/v1, and the key in "
            "an environment variable"
        )
    path = parsed.path.rstrip("/")
    for suffix in ("/chat/completions", "/completions"):
        path = path.removesuffix(suffix)
    return str(parsed.copy_with(path=path or "/v1"))


def _text(path: Path) -> ModelText:
    """The tokenizer in ``path``, a folder or its ``tokenizer.json``."""
    return ModelText.from_folder(path.parent if path.name == "tokenizer.json" else path)


def _completion(index: int, request: Request, document: dict[str, Any]) -> Completion | _Failure:
    """The completion in a server's answer."""
    sampling, given = request.sampling, document.get("choices")
    if not isinstance(given, list) or not all(isinstance(choice, dict) for choice in given):
        return _Failure(f"the answer has no choices: {_short(_message(json.dumps(document)))}", True)
    if len(given) != sampling.n:
        advice = "" if sampling.n == 1 else "; request the answers one by one, each with its own seed"
        return _Failure(f"the server returned {len(given)} choices instead of {sampling.n}{advice}", False)
    texts, finishes = list[str](), list[Literal["stop", "length"]]()
    for choice in sorted(given, key=lambda choice: choice["index"] if isinstance(choice.get("index"), int) else 0):
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        finish = choice.get("finish_reason")
        # A message without content: a refusal, or a model that was cut while still reasoning.
        text = "" if text is None and isinstance(message, dict) else text
        if not isinstance(text, str) or finish not in _STOPPED | _CUT:
            return _Failure(f"a choice is incomplete: {_short(json.dumps(choice, ensure_ascii=False))}", True)
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
            "scoring given answers needs the log probabilities of a prompt (echo and logprobs of /v1/completions), "
            "which this server does not return; use one that does (vLLM, SGLang), the model's own folder, or tasks "
            "in which the model writes its answer",
            False,
        )
    return Likelihood(sum(values), len(after), all(own >= top for own, top in zip(values, best, strict=True)))


def _tokens(document: dict[str, Any]) -> list[int] | _Failure:
    tokens = document.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        return _Failure("the server returned no tokens", False)
    return tokens


def _usage(document: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the answers; 0 if the server does not count them."""
    usage = document.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, new = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    return prompt, new


def _shares(total: int, lengths: list[int]) -> list[int]:
    """Divide ``total`` tokens among answers by their length, because servers count per request."""
    if len(lengths) == 1:
        return [total]
    ends = [total * sum(lengths[: n + 1]) // max(sum(lengths), 1) for n in range(len(lengths))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _read_cache(path: Path) -> dict[str, Any] | None:
    """A cached answer; None if it cannot be read. It is then requested again, and the write reports the cause."""
    try:
        answer = read_sealed(path, "kept answer", CACHE_FORMAT, "remove it")["answer"]
    except (OSError, DamagedFileError, KeyError):
        return None
    return answer if isinstance(answer, dict) else None


def _message(text: str) -> str:
    """The server's error message."""
    with suppress(ValueError, RecursionError, AttributeError, TypeError):
        document = json.loads(text)
        error = document.get("error") or document.get("detail") or document.get("message")
        return str(error["message"] if isinstance(error, dict) and "message" in error else error or text)
    return text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[:300]}…" if len(text) > 300 else text or "nothing"


def _retry_after(headers: httpx2.Headers) -> float:
    """Seconds to wait as requested by the server: a number, or until a date (RFC 9110, section 10.2.3)."""
    given = headers.get("retry-after", "")
    if given.strip()[:1].isdigit():
        with suppress(ValueError):
            return float(given)
    with suppress(ValueError, TypeError, OverflowError):
        return max(email.utils.parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
    return 0.0
