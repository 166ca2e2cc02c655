"""GGUF models through llama.cpp (the ``xllamacpp`` wheel; extra ``llamacpp``), in this process.

The wheel contains llama.cpp's server as a library: completions are function calls. It has no functions to tokenize text
or apply a chat template, so these go through its HTTP port, which listens on the loopback interface with a random key
of this process.

Every answer is computed from an empty cache, so it does not depend on earlier requests. With ``batch_size`` above 1,
requests are decoded together; the last digits of llama.cpp's sums then depend on the batch, which can flip a near tie.
Keep the default of 1 to compare scores.

Likelihoods: the server returns the probability of the token that it draws, before any bias. A bias therefore forces the
draw of each token of a continuation, and its probability is read. The context is always read as one batch and each
later token alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx2

from armillary.files import file_sha256
from armillary.generate.backend import (
    Backend,
    Choice,
    Completion,
    InProcess,
    Likelihood,
    Pair,
    Request,
    Sampling,
    fit_pair,
    fit_prompt,
    seed_of,
    split_pair,
)
from armillary.generate.registry import BackendOptions, register
from armillary.generate.threads import as_finished, as_streamed
from armillary.recipe import ArmillaryError, DamagedFileError, UsageError, one_line

_MAGIC = b"GGUF"
# A longer cache is only allocated on request: models state up to a million tokens, and each needs memory.
_CONTEXT = 8192
_CERTAIN = 1e6  # added to a logit, so that no other token can be drawn
_LEAST = -103.0  # the log of the smallest float32: below it llama.cpp returns no probability


class LlamaCppBackend(InProcess):
    """A GGUF file. ``batch_size`` requests are decoded together, each up to ``context`` tokens long.

    Raises:
        UsageError: the file is missing, or is not a GGUF file.
        DamagedFileError: llama.cpp cannot load it.
        ArmillaryError: the extra is not installed.
    """

    def __init__(self, path: Path, options: BackendOptions) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise ArmillaryError(
                f"{path}: GGUF models need xllamacpp ({error}); pip install 'armillary[llamacpp]'"
            ) from None
        _check_magic(path)
        self.slots = options.batch_size or 1
        key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = self.slots
        wanted = options.context or _CONTEXT
        params.n_ctx = self.slots * (wanted + 1)  # plus the last token of a pair, which is predicted but not read
        params.kv_unified = False
        params.cache_ram_mib = 0
        params.use_jinja = True
        params.warmup = False
        params.verbosity = -1
        params.ui = False
        params.api_keys = [key]
        setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        threads = options.threads or (int(setting) if setting.isdigit() else len(os.sched_getaffinity(0)))
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise DamagedFileError(
                f"{path}: llama.cpp cannot load this model ({one_line(error)}); fetch the file again, or use a file "
                "that this version of llama.cpp supports"
            ) from None
        self._http = httpx2.Client(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
        )
        facts = self._get("/v1/models")["data"][0]["meta"]
        super().__init__(min(wanted, facts["n_ctx_train"]))
        self._start = self._first_token()
        self._identity = {
            "backend": "llama.cpp",
            "model": path.name,
            "sha256": file_sha256(path),
            "precision": facts["ftype"],
            "version": xllamacpp.__version__,
        }
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        # A thread inside llama.cpp at the end of the interpreter crashes the process.
        atexit.register(self.close)

    @property
    def identity(self) -> dict[str, Any]:
        """The file's name and hash, its quantization, and the version of the wheel."""
        return self._identity

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields the completion of each request as soon as it is finished.

        Raises:
            UsageError: a prompt that fills the context, before anything is generated.
            ArmillaryError: llama.cpp failed.
        """
        begun = time.monotonic()
        prompts = [(index, request, *self._prompt(index, request)) for index, request in enumerate(requests)]

        def work(item: tuple[int, Request, list[int], int], stopping: threading.Event) -> Completion:
            index, request, prompt, cut = item
            with self._at_work():
                choices = (
                    self._answer(prompt, request.sampling, number, lambda _: stopping.is_set())
                    for number in range(request.sampling.n)
                )
                return Completion(index, tuple(choices), len(prompt), cut)

        for completion in as_finished(work, prompts, self.slots):
            self._count(completion, time.monotonic() - begun)
            begun = time.monotonic()
            yield completion

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each continuation. A token below e^-103 counts as e^-103, the limit of llama.cpp's
        precision.

        Raises:
            UsageError: a pair longer than the context, or without tokens, before anything is computed.
        """
        begun = time.monotonic()
        parts = [
            fit_pair(split_pair(pair, self._encode, self._start, number), pair.last_tokens, self._context, number)
            for number, pair in enumerate(pairs)
        ]
        results = []
        ready: list[int] | None = None  # the tokens in the cache
        for before, after, cut in parts:
            if before[:-1] != ready and before[:-1]:
                self._call({"prompt": before[:-1], "max_tokens": 1, "cache_prompt": False})
                self._cost.prompt_tokens += len(before)
            ready = before[:-1]
            value, greedy = 0.0, True
            for place, token in enumerate(after):
                drawn = self._call(
                    {
                        "prompt": before + after[:place],
                        "max_tokens": 1,
                        "n_probs": 1,
                        "logit_bias": [[token, _CERTAIN]],
                        "temperature": 0,
                        "cache_prompt": True,
                    }
                )["choices"][0]["logprobs"]["content"][0]
                if drawn["id"] != token:
                    raise ArmillaryError(
                        f"llama.cpp drew token {drawn['id']} although only {token} was allowed, so it cannot compute "
                        "likelihoods of this model: convert the model, and open that folder"
                    )
                value += max(drawn["logprob"], _LEAST)
                greedy &= drawn["top_logprobs"][0]["id"] == token
            self._cost.prompt_tokens += len(after)
            results.append(Likelihood(value, len(after), greedy, cut))
        self._cost.seconds += time.monotonic() - begun
        return results

    def tokenize(self, text: str) -> list[int]:
        """The token ids of ``text``, without special tokens added."""
        return self._encode(text, False)

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Yield the text of the first answer piece by piece, and return the same completion as ``complete``."""
        begun, (prompt, cut) = time.monotonic(), self._prompt(0, request)
        sampling = request.sampling

        def work(say: Callable[[str], bool]) -> list[Choice]:
            with self._at_work():
                first = self._answer(prompt, sampling, 0, say)
                others = (self._answer(prompt, sampling, number, lambda _: say("")) for number in range(1, sampling.n))
                return [first, *others]

        choices = yield from as_streamed(work)
        completion = Completion(0, tuple(choices), len(prompt), cut)
        self._count(completion, time.monotonic() - begun)
        return completion

    def close(self) -> None:
        """Stop the answers in progress, each at its next token, and free the model."""
        self._closing.set()
        for thread in list(self._threads):
            thread.join()
        self._http.close()
        self._server = None
        atexit.unregister(self.close)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Make ``close`` wait for this thread."""
        thread = threading.current_thread()
        self._threads.add(thread)
        try:
            yield
        finally:
            self._threads.discard(thread)

    def _answer(self, prompt: list[int], sampling: Sampling, number: int, say: Callable[[str], bool]) -> Choice:
        """Answer ``number``. ``say`` gets its text piece by piece, and stops it by returning true."""
        if self._closing.is_set():
            raise ArmillaryError("the backend was closed")
        pieces: list[str] = []
        last: dict[str, Any] = {}

        def take(chunk: dict[str, Any]) -> bool:
            last.update(chunk)
            if "choices" not in chunk:
                return self._closing.is_set()
            if text := chunk["choices"][0]["text"]:
                pieces.append(text)
                return say(text) or self._closing.is_set()
            return self._closing.is_set()

        self._server.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": min(sampling.max_new_tokens, self._context - len(prompt)),
                "temperature": sampling.temperature,
                "top_k": sampling.top_k or 0,
                "top_p": sampling.top_p,
                "samplers": ["temperature", "top_k", "top_p"],
                "seed": seed_of(sampling, number),
                "stop": list(sampling.stop),
                "cache_prompt": False,
                "stream": True,
            },
            take,
        )
        if "error" in last or "usage" not in last:
            raise ArmillaryError(f"llama.cpp failed: {last.get('error', {}).get('message', 'no answer')}")
        finish: Literal["stop", "length"] = "length" if last["choices"][0]["finish_reason"] == "length" else "stop"
        return Choice("".join(pieces), last["usage"]["completion_tokens"], finish)

    def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._server.handle_completions(body)
        if "error" in found:
            raise ArmillaryError(f"llama.cpp failed: {found['error'].get('message')}")
        return found

    def _get(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The response from the server's port; with a body the request is a POST."""
        response = self._http.get(path) if body is None else self._http.post(path, json=body)
        found: dict[str, Any] = response.json()
        if response.status_code != 200:
            raise ArmillaryError(f"llama.cpp failed at {path}: {found.get('error', {}).get('message')}")
        return found

    def _count(self, completion: Completion, seconds: float) -> None:
        self._cost.prompt_tokens += completion.prompt_tokens
        self._cost.new_tokens += sum(choice.tokens for choice in completion.choices)
        self._cost.seconds += seconds

    def _prompt(self, index: int, request: Request) -> tuple[list[int], int]:
        """The tokens of a request's prompt, with room for at least one answer token, and the number of cut tokens."""
        if isinstance(request.prompt, str):
            text = request.prompt
        else:
            messages = [{"role": message.role, "content": message.content} for message in request.prompt]
            text = self._get("/apply-template", {"messages": messages})["prompt"]
        return fit_prompt(self._encode(text, True), request.last_tokens, self._context, index)

    def _encode(self, text: str, special: bool) -> list[int]:
        found = self._get("/tokenize", {"content": text, "add_special": special, "parse_special": True})
        tokens: list[int] = found["tokens"]
        return tokens

    def _first_token(self) -> int | None:
        """The token that starts a document: the model's own, else the token that ends a document."""
        props = self._get("/props")
        tokens = self._encode(props["bos_token"] or props["eos_token"], False)
        return tokens[0] if len(tokens) == 1 else None


@register("llama.cpp", lambda target: target.lower().endswith(".gguf"), {"batch_size", "context", "threads"})
def open_llamacpp(target: str, options: BackendOptions) -> Backend:
    """A GGUF file, or the first file of a split GGUF."""
    return LlamaCppBackend(Path(target), options)


def _check_magic(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a GGUF file") from None
    if magic != _MAGIC:
        raise UsageError(f"{path}: not a GGUF file (it starts with {magic!r}, not {_MAGIC!r})")
