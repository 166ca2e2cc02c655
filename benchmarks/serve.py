"""Load on ``armillary serve``: many clients at a time against a random model of 12.6 million parameters, in fp32.

Each client sends streamed completions one after another: prompts of 10 to 200 tokens, answers of 16 to 128 tokens,
temperature 0.8, each with a seed. The model has no end token, so every answer has the requested number of tokens; any
other answer counts as lost. Afterwards some requests are repeated alone, and must return the same text. Then
one client alone does the same for a while: sequential serving.

The server is a separate process with ``--threads`` threads; all clients are in one other process, so both share the
machine. Its memory is read from ``/metrics``.

Needs the extras ``serve`` and ``export``.

    python benchmarks/serve.py --seconds 60 --clients 64 --json serve.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from common import markdown, write_json

from armillary.corpus.tokenizer import train_bpe

SEQUENTIAL_S = 15.0
CHECKED = 24
_WORDS = ["the", "sky", "is", "blue", "and", "a", "sea", "wide", "def", "return", "self", "none", "path", "for"]


def make_model(folder: Path) -> int:
    """Write the model as a Hugging Face folder; the number of its parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.05,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py"))]
    (folder / "tokenizer.json").write_text(train_bpe(texts, 4096), encoding="utf-8")
    return sum(one.numel() for one in model.parameters())


@dataclass
class Done:
    """One request: its body, its text, and its times in seconds."""

    body: dict[str, Any]
    text: str
    first_s: float
    whole_s: float
    gap_s: float


def new_body(random_: random.Random) -> dict[str, Any]:
    """A request."""
    return {
        "prompt": " ".join(random_.choices(_WORDS, k=random_.randint(5, 100))),
        "max_tokens": random_.randint(16, 128),
        "temperature": 0.8,
        "seed": random_.randrange(2**31),
    }


async def ask(client: httpx2.AsyncClient, body: dict[str, Any]) -> Done:
    """One streamed request.

    Raises:
        ValueError: the answer is not complete.
    """
    begun, first, last, gap, data = time.perf_counter(), 0.0, 0.0, 0.0, bytearray()
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/completions", json=sent) as answer:
        async for chunk in answer.aiter_raw():
            now = time.perf_counter()
            first, gap = first or now, max(gap, now - last if last else 0.0)
            last = now
            data += chunk
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    if answer.status_code != 200 or lines[-1:] != ["[DONE]"]:
        raise ValueError(f"status {answer.status_code}: {data[-200:]!r}")
    events = [json.loads(line) for line in lines[:-1]]
    if events[-1]["usage"]["completion_tokens"] != body["max_tokens"]:
        raise ValueError(f"{events[-1]['usage']} of {body['max_tokens']} tokens")
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    return Done(body, text, first - begun, last - begun, gap)


@dataclass
class Load:
    """What was done, what failed, the time until the last answer, the server's processor time, and its memory."""

    done: list[Done]
    failed: list[str]
    seconds: float = 0.0
    cpu_s: float = 0.0
    memory_mib: list[tuple[int, float]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """New tokens of all answers."""
        return sum(one.body["max_tokens"] for one in self.done)


async def metric(client: httpx2.AsyncClient, name: str) -> float:
    """A number of the server."""
    found = re.search(rf"^{name} (\S+)$", (await client.get("/metrics")).text, re.M)
    return float(found[1]) if found else 0.0


async def load(url: str, clients: int, seconds: float) -> Load:
    """Let clients send requests for a while."""
    made = Load([], [])
    limits = httpx2.Limits(max_connections=clients + 1)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        cpu = await metric(client, "process_cpu_seconds_total")
        begun = time.perf_counter()

        async def work(number: int) -> None:
            random_ = random.Random(f"{clients} {number}")
            while time.perf_counter() - begun < seconds:
                try:
                    made.done.append(await ask(client, new_body(random_)))
                except (httpx2.HTTPError, ValueError) as error:
                    made.failed.append(f"{type(error).__name__}: {error}")

        async def watch() -> None:
            while True:
                await asyncio.sleep(max(len(made.memory_mib) * 10 + 10 - (time.perf_counter() - begun), 0))
                resident = await metric(client, "process_resident_memory_bytes")
                made.memory_mib.append((round(time.perf_counter() - begun), resident / 2**20))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*map(work, range(clients)))
        made.seconds = time.perf_counter() - begun
        watching.cancel()
        made.cpu_s = await metric(client, "process_cpu_seconds_total") - cpu
    return made


async def repeat(url: str, done: list[Done]) -> int:
    """How many of some requests have the same answer alone."""
    chosen = random.Random(1).sample(done, min(CHECKED, len(done)))
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        return sum([(await ask(client, one.body)).text == one.text for one in chosen])


def percentiles(values: list[float]) -> list[float]:
    """The 50th, 90th and 99th percentile, and the largest."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return [cuts[49], cuts[89], cuts[98], max(values)]


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        parameters = make_model(Path(place))
        command = [sys.executable, "-m", "armillary", "serve", place, "--port", "0", "--name", "random", "--json"]
        command += ["--batch-size", str(arguments.slots), "--threads", str(arguments.threads), "--backend", "native"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert server.stdout is not None
            said = ""
            while not said.rstrip().endswith("}"):
                said += server.stdout.readline()
            url = json.loads(said)["url"].removesuffix("/v1")
            asyncio.run(load(url, 2, 2))  # first allocations
            crowd = asyncio.run(load(url, arguments.clients, arguments.seconds))
            same = asyncio.run(repeat(url, crowd.done))
            alone = asyncio.run(load(url, 1, SEQUENTIAL_S))
        finally:
            server.terminate()
            server.wait()
    speeds = [each.tokens / each.seconds for each in (crowd, alone)]
    of_cpu = [each.tokens / each.cpu_s for each in (crowd, alone)]
    failed = crowd.failed + alone.failed
    rows = []
    for name, each in ((f"{arguments.clients} clients", crowd.done), ("1 client", alone.done)):
        for what, values in (
            ("first piece", [one.first_s for one in each]),
            ("whole answer", [one.whole_s for one in each]),
            ("longest pause in an answer", [one.gap_s for one in each]),
        ):
            rows.append([name, what, *(f"{value * 1e3:.0f}" for value in percentiles(values))])
    print(f"{parameters:,} parameters, {arguments.slots} slots, {arguments.threads} threads")
    print(f"{len(crowd.done)} answers in {crowd.seconds:.1f} s, {len(failed)} lost {failed[:3]}")
    print(f"{same} of {min(CHECKED, len(crowd.done))} answers are the same alone")
    print(f"{speeds[0]:.0f} tokens/s against {speeds[1]:.0f} one after another: {speeds[0] / speeds[1]:.2f} times")
    print(f"of a processor second {of_cpu[0]:.0f} against {of_cpu[1]:.0f}: {of_cpu[0] / of_cpu[1]:.2f} times")
    print("memory in MiB: " + ", ".join(f"{at} s: {mib:.0f}" for at, mib in crowd.memory_mib))
    print(markdown(["", "ms", "p50", "p90", "p99", "max"], rows))
    write_json(
        arguments.json, "serve", parameters=parameters, clients=arguments.clients, slots=arguments.slots,
        threads=arguments.threads, answers=len(crowd.done), lost=len(failed), same_alone=same, seconds=crowd.seconds,
        tokens_per_second=speeds, tokens_per_cpu_second=of_cpu, memory_mib=crowd.memory_mib, percentiles_ms=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
