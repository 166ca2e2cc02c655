"""``convert``: exact round trips between formats, what transformers computes, small memory, and nothing half done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.files import HOST
from armillary.model import ConvertOptions, Transformer, build, convert, export_hf, open_model
from armillary.model.weights import shards
from armillary.model.weights.convert import new_path
from armillary.model.weights.telechat2 import telechat2_pieces
from armillary.recipe import ArmillaryError, DamagedFileError, Experts, ForeignFileError, ModelShape, UsageError
from vectors import vectors

SIZES = {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48, "vocab_size": 320}
LENGTHS = {"kind": "telechat2", "original_length": 32, "base_length": 32}
SHAPES = {
    "llama": {},
    "tied": {"tied_embeddings": True},
    "telechat2": {"biases": ("out", "down"), "rope_scaling": LENGTHS},
    "telechat2, other base": {"biases": ("out", "down"), "rope_scaling": {**LENGTHS, "base_length": 16}},
    "qwen2": {"biases": ("q", "k", "v")},
    "llama with biases": {"biases": ("q", "k", "v", "out", "gate", "up", "down")},
    "qwen3": {"qk_norm": True},
    "qwen3 with biases": {"qk_norm": True, "biases": ("q", "k", "v", "out")},
    "experts": {"qk_norm": True, "experts": Experts(count=4, active=2, d_ff=16, balance="none")},
}


def drawn(shape: ModelShape) -> Transformer:
    """A model whose every parameter is random, so that a lost or exchanged one shows."""
    model = Transformer(shape)
    model.init_weights(0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=source) + 0.5)
    return model


def folder_of(name: str, path: Path, tokenizer_file: Path) -> tuple[Transformer, Path]:
    model = drawn(ModelShape(**SIZES, **SHAPES[name]))
    export_hf(model, path, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    return model, path


def same(one: Path, other: Path) -> bool:
    a, b = (build(open_model(path)).state_dict() for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_from_what_is_written(
    name: str, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    model, folder = folder_of(name, tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "native", ConvertOptions("native", check=True))
    found = convert(tmp_path / "native", tmp_path / "again", ConvertOptions("huggingface", check=True))
    assert found.source == "native" and found.relative == 0 and same(folder, tmp_path / "again")
    assert load_file(folder / "model.safetensors").keys() == load_file(tmp_path / "again/model.safetensors").keys()
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(tokens)
        assert (theirs(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3 with biases": "Qwen3", "experts": "Qwen3Moe"}.get(name, "Llama")
    assert type(theirs).__name__ == f"{kind}ForCausalLM"
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_models_made_by_transformers_are_imported(kind: str, tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        vocab_size=300,
        tie_word_embeddings=tied,
        max_position_embeddings=256,
        initializer_range=0.3,
        **({"sliding_window": 256} if kind == "Mistral" else {}),
    )
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    theirs.save_pretrained(tmp_path)
    source = open_model(tmp_path)
    assert source.context_length == 256 and source.shape.biases == (("q", "k", "v") if kind == "Qwen2" else ())
    tokens = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert (build(source)(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("mistral", {"sliding_window": 32}),
        ("mistral", {"sliding_window": "wide"}),
        ("qwen2", {"use_sliding_window": True}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("llama", {"attn_logit_softcapping": 30.0}),
        ("llama", {"residual_multiplier": 0.5}),
        ("qwen2", {"use_mrope": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_a_configuration_asks_for_and_is_not_computed_is_refused(
    kind: str, change: dict[str, Any], tmp_path: Path, tokenizer_file: Path
) -> None:
    _, folder = folder_of("qwen2" if kind == "qwen2" else "llama", tmp_path / "hf", tokenizer_file)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if kind == "mistral":
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
        del config["attention_bias"], config["mlp_bias"]
    path.write_text(json.dumps(config))
    open_model(folder)
    path.write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError, match=next(iter(change))):
        open_model(folder)


@pytest.mark.parametrize("to", ["native", "telechat2"])
def test_a_converted_folder_generates_as_the_folder_it_came_from(to: str, tmp_path: Path, tokenizer_file: Path) -> None:
    from armillary.generate import BackendOptions, Request, Sampling, open_backend

    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "out", ConvertOptions("telechat2"))
    convert(tmp_path / "out", tmp_path / "other", ConvertOptions(to))
    answers = []
    for path in (folder, tmp_path / "other"):
        backend: Any = open_backend(str(path), BackendOptions())
        assert backend.context == 64
        (answer,) = backend.complete([Request("the sphere", Sampling(max_new_tokens=12))])
        answers.append(answer.choices[0].text)
        backend.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["gqa", "mha", "long"])
def test_telechat2_comes_back_bit_for_bit_from_every_format(name: str, tmp_path: Path) -> None:
    given = vectors("telechat2", name)
    convert(given, tmp_path / "native", ConvertOptions("native"))
    convert(tmp_path / "native", tmp_path / "telechat2", ConvertOptions("telechat2", check=True))
    theirs = load_file(given / "model.safetensors")
    ours = load_file(tmp_path / "telechat2" / "model.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    config, before = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "telechat2", given))
    assert {key: value for key, value in before.items() if key in config and config[key] != value} == {}


@pytest.mark.parametrize("name", ["gqa", "mha", "long"])
def test_telechat2_as_llama_is_exact_within_its_training_length(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    given = vectors("telechat2", name)
    convert(given, tmp_path / "llama", ConvertOptions("huggingface", check=name != "long"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    length = theirs.config.max_position_embeddings
    assert length == json.loads((given / "config.json").read_text())["training_seqlen"]
    assert theirs.config.attention_bias and theirs.config.mlp_bias
    tokens = load_file(given / "expected.safetensors")["tokens"][:, :length]
    with torch.no_grad():
        expected = build(open_model(given))(tokens)
        assert (theirs(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"qk_norm": True}, "qk_norm"),
        ({"qk_norm": True, "experts": Experts(count=4, active=2, d_ff=16, balance="none")}, "experts"),
        ({"biases": ("q", "down")}, "biases of q"),
        ({"head_dim": 16}, "head_dim"),
        ({"rope_theta": 5e5}, "rope_theta"),
        ({"rope_scaling": {"kind": "linear", "factor": 2.0}}, "rope_scaling"),
    ],
)
def test_what_telechat2_lacks_is_refused_by_name(
    shape: dict[str, Any], named: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    model = drawn(ModelShape(**{**SIZES, **shape}))
    export_hf(model, tmp_path / "hf", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    with pytest.raises(UsageError, match=f"{tmp_path / 'hf'}: .*{named}"):
        convert(tmp_path / "hf", tmp_path / "out", ConvertOptions("telechat2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_once(dtype: str, tmp_path: Path, tokenizer_file: Path) -> None:
    model, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    found = convert(folder, tmp_path / "half", ConvertOptions("huggingface", dtype, check=True))
    assert found.dtype == dtype and found.relative is not None and 0 < found.relative < 0.1
    kept = convert(tmp_path / "half", tmp_path / "native", ConvertOptions("native"))
    assert kept.dtype == dtype
    for name, value in build(open_model(tmp_path / "native")).state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(getattr(torch, dtype)).float())


def spoiled(folder: Path, name: str, value: float) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("inf"), None), (1e6, "float16")])
def test_values_that_cannot_be_weights_are_named(
    value: float, dtype: str | None, tmp_path: Path, tokenizer_file: Path
) -> None:
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    spoiled(folder, "model.layers.1.mlp.up_proj.weight", value)
    with pytest.raises(ArmillaryError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has values"):
        convert(folder, tmp_path / "out", ConvertOptions("huggingface", dtype))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("change", ["shape", "type", "gone"])
def test_a_source_that_changes_while_it_is_read_is_named(change: str, tmp_path: Path, tokenizer_file: Path) -> None:
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    source = open_model(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if change == "gone":
        path.unlink()
    else:
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name][:8].clone() if change == "shape" else tensors[name].half()
        save_file(tensors, tmp_path / "new")
        (tmp_path / "new").replace(path)
    with pytest.raises(ArmillaryError, match=r"model\.safetensors.*fetch the folder again"):
        build(source)


def test_a_checkpoint_of_a_training_beside_weights_does_not_hide_them(tmp_path: Path, tokenizer_file: Path) -> None:
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    (folder / "last.ckpt").write_bytes(b"PK\x03\x04")
    assert open_model(folder).format == "huggingface"


def test_nothing_is_overwritten_and_no_unknown_word_is_taken(tmp_path: Path, tokenizer_file: Path) -> None:
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for dst, options, said in (
        (tmp_path / "there", ConvertOptions("native"), "exists"),
        (tmp_path / "link", ConvertOptions("native"), "exists"),
        (folder, ConvertOptions("native"), "exists"),
        (folder / "inside", ConvertOptions("native"), "is inside"),
        (tmp_path / "out", ConvertOptions("onnx"), "--to onnx: unknown; give one of native"),
        (tmp_path / "out", ConvertOptions("native", "float8"), "--dtype float8: unknown"),
    ):
        with pytest.raises(UsageError, match=said):
            convert(folder, dst, options)
    with pytest.raises(UsageError, match="not found"):
        convert(tmp_path / "missing", tmp_path / "out", ConvertOptions("native"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "link", "there"]


def test_too_little_space_is_said_before_and_while_writing(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(ArmillaryError, match="GB are free"):
            convert(folder, tmp_path / "out", ConvertOptions("native"))
    # what the disk itself says: a file may grow to 8 KB
    limited = (
        "import resource, signal, sys; from pathlib import Path; from armillary.model import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions('native'))"
    )
    command = [sys.executable, "-c", limited, folder, tmp_path / "out"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "OSError" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def killed_at(point: int, folder: Path, out: Path) -> int:
    """Convert in a child that is killed at its ``point``-th touch of the file system; how many it counted."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def touched(event: str, _: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "open" or event.startswith(("os.", "shutil.", "fcntl.")):
                count += 1
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(touched)
        convert(folder, out, ConvertOptions("gguf" if out.suffix else "native"))
        os.write(writing, str(count).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        counted = told.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if counted else -signal.SIGKILL)
    return int(counted or 0)


@pytest.mark.parametrize("name", ["out", pytest.param("out.gguf", marks=pytest.mark.slow)])
def test_a_conversion_that_is_killed_anywhere_is_cleared_away(name: str, tmp_path: Path, tokenizer_file: Path) -> None:
    """Ten points from the first to the last touch of the file system."""
    if name == "out.gguf":
        pytest.importorskip("gguf", reason="needs the extra llamacpp")
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    out, left = tmp_path / name, 0
    total = killed_at(0, folder, out)
    assert total > 20
    for number in range(10):
        out.unlink() if out.is_file() else shutil.rmtree(out, ignore_errors=True)
        assert killed_at(1 + number * (total - 1) // 9, folder, out) == 0
        left += any(path.name.startswith(f".{name}.") for path in tmp_path.iterdir())
        if not out.exists():
            convert(folder, out, ConvertOptions("gguf" if out.suffix else "native"))
        else:  # killed after the rename; the next call for this name clears away the rest
            assert same(folder, out)
            with pytest.raises(UsageError, match="exists"):
                convert(folder, out, ConvertOptions("native"))
        assert same(folder, out)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert left >= 4, "most kills leave a hidden folder"


def test_what_others_write_is_left_alone(tmp_path: Path, tokenizer_file: Path) -> None:
    """A conversion that still runs, of another machine, of another name, and a file that only looks like one."""
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    kept = [tmp_path / f".out.{host}.0123456789ab" for host in ("elsewhere", f"{HOST}x")]
    kept += [tmp_path / f".other.{HOST}.0123456789ab", tmp_path / f".out.{HOST}.mine", tmp_path / ".out"]
    for path in kept:
        path.mkdir()
    (tmp_path / f".out.{HOST}.ba9876543210").write_text("a file")
    with new_path(tmp_path / "out", 0, None) as running:
        convert(folder, tmp_path / "out", ConvertOptions("native"))
        assert running.is_dir()
        shutil.rmtree(tmp_path / "out")
    assert all(path.is_dir() for path in kept) and (tmp_path / f".out.{HOST}.ba9876543210").is_file()


def test_a_check_that_fails_keeps_nothing(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    real = shards.write_tensor

    def other(file: Any, tensor: shards.Planned) -> None:
        real(file, shards.Planned(tensor.name, tensor.size, tensor.dtype, lambda: tensor.make() * 1.01))

    monkeypatch.setattr(shards, "write_tensor", other)
    with pytest.raises(ArmillaryError, match="not written: its logits differ"):
        convert(folder, tmp_path / "out", ConvertOptions("native", check=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_description_that_is_edited_or_newer_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    _, folder = folder_of("llama", tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "native", ConvertOptions("native"))
    path = tmp_path / "native" / "armillary.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "context_length": 9}))
    with pytest.raises(DamagedFileError, match="checksum"):
        open_model(tmp_path / "native")
    path.write_text(json.dumps({**document, "format": 2}))
    with pytest.raises(ForeignFileError, match="format 2"):
        open_model(tmp_path / "native")


MEASURED = """
import resource, sys
from pathlib import Path
from armillary.model import ConvertOptions, convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(sys.argv[3]))
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_of_a_sharded_conversion_is_about_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 MB in shards of 10 MB; what the process held before (mostly PyTorch) is not counted."""
    sizes = {**SIZES, "n_layers": 18, "d_model": 256, "head_dim": 64, "d_ff": 1920, "vocab_size": 1024}
    shape = ModelShape(**sizes, biases=("out", "down"), rope_scaling=LENGTHS)
    pieces = telechat2_pieces(shape)
    planned = [
        shards.Planned(p.name, p.size, torch.float32, lambda size=p.size: torch.full(size, 0.01)) for p in pieces
    ]
    (tmp_path / "telechat2").mkdir()
    files = shards.ShardFiles(shard_bytes=10_000_000)
    shards.write_shards(tmp_path / "telechat2", planned, lambda count: None, files)
    config = {
        "architectures": ["TELECHAT2ForCausalLM"],
        "n_layer": 18,
        "hidden_size": 256,
        "n_head": 4,
        "num_key_value_heads": 2,
        "ffn_hidden_size": 1920,
        "vocab_size": 1024,
        "layer_norm_epsilon": 1e-8,
        "training_seqlen": 32,
    }
    (tmp_path / "telechat2" / "config.json").write_text(json.dumps(config))
    count, total = len(list((tmp_path / "telechat2").glob("*.safetensors"))), sum(p.bytes for p in planned)
    assert count > 10 and total > 110e6
    command = [sys.executable, "-c", MEASURED, tmp_path / "telechat2", tmp_path / "hf", "huggingface"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = map(int, ended.stdout.split())
    assert peak - before < 10_000_000 + 40_000_000
    source, written = open_model(tmp_path / "telechat2"), open_model(tmp_path / "hf")
    assert torch.equal(source.tensor("layers.7.attention.k.weight"), written.tensor("layers.7.attention.k.weight"))
