"""Runs any causal language model in a Hugging Face folder through ``transformers`` (extra ``export``).

``transformers`` runs the model with its own cache, masks and positions, so every architecture it supports works. Tokens
are drawn here: each answer has its own generator, seeded only from the request. Folders are treated as data: weights
come from safetensors, and code in the folder is not run.

Trade-off: ``batch_size`` defaults to 1. In a batch, shorter prompts are padded at the start, and sums over other shapes
differ in their last digits, which can flip a near tie in bfloat16. The native backend is faster and independent of its
batch; this one is for models that the native backend cannot read.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from armillary.files import file_sha256
from armillary.generate.backend import (
    Backend,
    BadRequestError,
    Choice,
    Completion,
    InProcess,
    Likelihood,
    Message,
    Pair,
    Request,
    Sampling,
    fit_pair,
    fit_prompt,
    split_pair,
)
from armillary.generate.registry import BackendOptions, register
from armillary.generate.stops import before_stop, safe_end
from armillary.generate.threads import as_streamed
from armillary.recipe import ArmillaryError, DamagedFileError, UsageError, one_line

if TYPE_CHECKING:
    import torch

    from armillary.generate.sampling import Sampler

_PRECISIONS = ("float32", "bfloat16", "float16")
_CONTEXT = 2048  # if neither model nor tokenizer states one, as in EleutherAI's lm-evaluation-harness


@dataclass
class _Row:
    """One answer in progress; ``say`` gets its text so far, and stops it by returning true."""

    prompt: list[int]
    sampling: Sampling
    sampler: Sampler
    say: Callable[[str], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class TransformersBackend(InProcess):
    """A folder with ``config.json``, weights in safetensors, and a tokenizer.

    Raises:
        UsageError: no such folder, or an option outside its range.
        DamagedFileError: ``transformers`` cannot load the model or its tokenizer.
        ArmillaryError: the extra is not installed.
    """

    def __init__(self, folder: Path, options: BackendOptions) -> None:
        if not (folder / "config.json").is_file():
            raise UsageError(f"{folder}: not a Hugging Face folder: it has no config.json")
        if options.precision not in (None, *_PRECISIONS):
            raise UsageError(f"precision must be one of {', '.join(_PRECISIONS)}, given {options.precision!r}")
        try:
            library: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ArmillaryError(
                f"{folder}: this folder needs transformers ({error}); pip install 'armillary[export]'"
            ) from None
        import torch

        if options.threads is not None:
            torch.set_num_threads(options.threads)
        library.logging.disable_progress_bar()
        self._device = _device(options.device)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = library.AutoTokenizer.from_pretrained(folder, **local)
            self._model: Any = library.AutoModelForCausalLM.from_pretrained(
                folder, dtype=options.precision or "auto", use_safetensors=True, **local
            )
        except MemoryError:
            raise
        except Exception as error:
            raise DamagedFileError(
                f"{folder}: transformers cannot load this model ({one_line(error)}); it needs a causal language model "
                "of a known architecture with weights in safetensors and a tokenizer"
            ) from None
        self._model.to(self._device).eval()
        ends = self._model.generation_config.eos_token_id
        self._ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        # Penalties and temperatures in the folder are ignored: a request holds everything that its answer depends on.
        self._model.generation_config = library.GenerationConfig(
            eos_token_id=sorted(self._ends) or None, pad_token_id=min(self._ends, default=0)
        )
        self._batch = options.batch_size or 1
        super().__init__(min(_longest(self._model.config, self._tokenizer), options.context or 2**62))
        self._identity = {
            "backend": "transformers",
            "model": folder.resolve().name,
            "sha256": _hash(folder),
            "precision": str(self._model.dtype).removeprefix("torch."),
            "version": library.__version__,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The folder's name and a hash of its files, the precision, and the version of ``transformers``."""
        return self._identity

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield the completions, one batch at a time.

        Raises:
            UsageError: a prompt that fills the context, or messages that the chat template refuses, before anything
                is generated.
        """
        prompts = [(index, request, *self._prompt(index, request)) for index, request in enumerate(requests)]
        waiting = iter(prompts)
        while batch := list(islice(waiting, self._batch)):
            begun = time.monotonic()
            rows = [
                [self._row(prompt, request.sampling, number) for number in range(request.sampling.n)]
                for _, request, prompt, _ in batch
            ]
            self._generate([row for of_request in rows for row in of_request])
            self._cost.seconds += time.monotonic() - begun
            for (index, _, prompt, cut), of_request in zip(batch, rows, strict=True):
                yield replace(self._completion(index, prompt, of_request), cut=cut)

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each continuation, summed in float32.

        Raises:
            UsageError: a pair longer than the context, or without tokens, before anything is computed.
        """
        begun = time.monotonic()
        fitted = [
            fit_pair(split_pair(pair, self._encode, self._first(), number), pair.last_tokens, self._context, number)
            for number, pair in enumerate(pairs)
        ]
        parts = [(before, after) for before, after, _ in fitted]
        # Continuations of one token, such as the letters of a choice, are read from one pass over their context.
        same: dict[tuple[int, ...], list[int]] = {}
        for number, (before, after) in enumerate(parts):
            same.setdefault((*before, *after[:-1]), []).append(number)
            self._cost.prompt_tokens += len(before) + len(after)
        found: dict[int, Likelihood] = {}
        # Sort by length, so that there is little padding.
        waiting = iter(sorted(same, key=len, reverse=True))
        while batch := list(islice(waiting, self._batch)):
            rows = [[(number, *parts[number]) for number in same[inputs]] for inputs in batch]
            for number, wanted, logits in self._logits(batch, rows):
                scores = logits.float().log_softmax(-1)
                value = float(scores.gather(1, wanted[:, None]).sum())
                greedy = bool((scores.argmax(-1) == wanted).all())
                found[number] = Likelihood(value, len(wanted), greedy, fitted[number][2])
        self._cost.seconds += time.monotonic() - begun
        return [found[number] for number in range(len(parts))]

    def _logits(
        self, batch: list[tuple[int, ...]], rows: list[list[tuple[int, list[int], list[int]]]]
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """One pass over the inputs of a batch.

        Yields the number of each pair with these inputs, the tokens of its continuation, and the logits at their
        positions [tokens, vocabulary].
        """
        import torch

        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(inputs) for inputs in batch], batch_first=True)
        with torch.no_grad():
            logits = self._model(padded.to(self._device)).logits
        for row, pairs in enumerate(rows):
            for number, before, after in pairs:
                start = len(before) - 1
                yield number, torch.tensor(after, device=logits.device), logits[row, start : start + len(after)]

    def tokenize(self, text: str) -> list[int]:
        """The token ids of ``text``, without special tokens added."""
        return self._encode(text, False)

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Yield the text of the first answer piece by piece, and return the same completion as ``complete``."""
        begun, (prompt, cut) = time.monotonic(), self._prompt(0, request)

        def work(say: Callable[[str], bool]) -> list[_Row]:
            rows = [self._row(prompt, request.sampling, number) for number in range(request.sampling.n)]
            sent = 0

            def say_new(text: str) -> bool:
                # Text that may become a stop string or a complete character is held back.
                nonlocal sent
                end = safe_end(text, request.sampling.stop)
                new, sent = text[sent:end], max(sent, end)
                if new and say(new):
                    for row in rows:
                        row.ended = True
                return rows[0].ended

            rows[0].say = say_new
            self._generate(rows)
            say(self._text(rows[0])[sent:])
            return rows

        rows = yield from as_streamed(work)
        self._cost.seconds += time.monotonic() - begun
        return replace(self._completion(0, prompt, rows), cut=cut)

    def close(self) -> None:
        """Free the model."""
        del self._model

    def _row(self, prompt: list[int], sampling: Sampling, number: int) -> _Row:
        from armillary.generate.sampling import Sampler  # imported here because it loads torch

        return _Row(prompt, sampling, Sampler(sampling, number))

    def _generate(self, rows: list[_Row]) -> None:
        """Fill the ``tokens`` of the rows."""
        import torch

        longest = max(len(row.prompt) for row in rows)
        pad = self._model.generation_config.pad_token_id
        inputs = torch.tensor([[pad] * (longest - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows])

        def draw(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            # Leave one token to choose from in each row.
            only = torch.full_like(logits, float("-inf"))
            for row, scores, chosen in zip(rows, logits.float().cpu().numpy(), only, strict=True):
                token = 0 if row.ended else row.sampler.draw(scores)
                chosen[token] = 0
                if not row.ended:
                    self._take(row, token)
            return only

        def ended(_: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
            return torch.tensor([row.ended for row in rows], device=self._device)

        self._model.generate(
            inputs.to(self._device),
            attention_mask=mask.to(self._device),
            do_sample=False,
            max_new_tokens=max(self._room(row) for row in rows),
            logits_processor=[draw],
            stopping_criteria=[ended],
        )

    def _take(self, row: _Row, token: int) -> None:
        """Add a token to an answer, and check whether that ends it."""
        if token in self._ends:
            row.ended = True
            return
        row.tokens.append(token)
        row.ended = len(row.tokens) >= self._room(row)
        if row.sampling.stop:
            # Every token has at least one byte, so a stop string lies within this many of the last tokens.
            width = max(len(stop.encode()) for stop in row.sampling.stop) + 4
            text = self._decode(row.tokens[-width:])
            row.ended |= any(stop in text for stop in row.sampling.stop)
        if row.say is not None:
            row.ended |= row.say(self._decode(row.tokens))

    def _room(self, row: _Row) -> int:
        return min(row.sampling.max_new_tokens, self._context - len(row.prompt))

    def _completion(self, index: int, prompt: list[int], rows: list[_Row]) -> Completion:
        choices = []
        for row in rows:
            text, whole = self._text(row), self._decode(row.tokens)
            cut = len(row.tokens) >= self._room(row) and text == whole
            finish: Literal["stop", "length"] = "length" if cut else "stop"
            choices.append(Choice(text, len(row.tokens), finish))
        self._cost.prompt_tokens += len(prompt)
        self._cost.new_tokens += sum(choice.tokens for choice in choices)
        return Completion(index, tuple(choices), len(prompt))

    def _text(self, row: _Row) -> str:
        """The answer before its first stop string."""
        return before_stop(self._decode(row.tokens), row.sampling.stop)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _prompt(self, index: int, request: Request) -> tuple[list[int], int]:
        if isinstance(request.prompt, str):
            tokens = self._encode(request.prompt, True)
        else:
            tokens = self._encode(self._chat(index, request.prompt), False)
        return fit_prompt(tokens, request.last_tokens, self._context, index)

    def _chat(self, index: int, messages: tuple[Message, ...]) -> str:
        if not self._tokenizer.chat_template:
            raise BadRequestError(index, "this model has no chat template; give the prompt as text")
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates are programs and can raise any error
            raise BadRequestError(index, f"the chat template refuses the messages ({one_line(error)})") from None
        return text

    def _encode(self, text: str, special: bool) -> list[int]:
        start = self._tokenizer.bos_token
        doubled = bool(start) and text.startswith(start)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special and not doubled)
        return tokens

    def _first(self) -> int | None:
        start: int | None = self._tokenizer.bos_token_id
        return start if start is not None else self._tokenizer.eos_token_id


@register(
    "transformers",
    lambda target: (Path(target) / "config.json").is_file(),
    {"batch_size", "context", "device", "precision", "threads"},
)
def open_transformers(target: str, options: BackendOptions) -> Backend:
    """A Hugging Face folder."""
    return TransformersBackend(Path(target), options)


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used ({one_line(error).split('.')[0]}); 'cpu' always works"
        ) from None
    return device


def _longest(config: Any, tokenizer: Any) -> int:
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        length = getattr(config, name, None)
        if isinstance(length, int):
            return length
    length = tokenizer.model_max_length
    return int(length) if length < 10**9 else _CONTEXT  # a huge number means none


def _hash(folder: Path) -> str:
    """SHA-256 over names and content of the files that determine the answers."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
