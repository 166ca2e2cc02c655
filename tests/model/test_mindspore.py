"""Checkpoints of MindSpore: files that MindSpore wrote, both containers both ways, and damaged or foreign files."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armillary.model import ConvertOptions, Transformer, build, convert, export_hf, open_model
from armillary.model.weights.mindspore import Checkpoint, mindspore_pieces
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, ModelShape, UsageError
from vectors import vectors

SIZES = {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48, "vocab_size": 320}
SHAPES = {
    "llama": {"rope_theta": 5e5},
    "tied": {"tied_embeddings": True},
    "with biases": {"biases": ("q", "k", "v")},
}


def native(name: str, folder: Path, tokenizer_file: Path) -> Path:
    model = Transformer(ModelShape(**SIZES, **SHAPES[name]))
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    export_hf(model, folder / "hf", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=32)
    convert(folder / "hf", folder / "native", ConvertOptions("native"))
    return folder / "native"


def equal(one: Path, other: Path) -> bool:
    a, b = (build(open_model(path)).state_dict() for path in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["gqa.ckpt", "gqa.safetensors", "gqa_bf16.ckpt"])
def test_what_mindspore_wrote_is_the_model_of_the_release(name: str) -> None:
    path, release = vectors("mindspore", name), vectors("telechat2", "gqa")
    source = open_model(path, release / "config.json")
    assert source.format == "mindspore" and source.context_length == 64
    theirs = build(open_model(release)).state_dict()
    for key, value in build(source).state_dict().items():
        expected = theirs[key].bfloat16().float() if "bf16" in name else theirs[key]
        assert torch.equal(value, expected), key
    assert source.dtype == (torch.bfloat16 if "bf16" in name else torch.float32)


@pytest.mark.parametrize("container", ["ckpt", "safetensors"])
@pytest.mark.parametrize("name", ["gqa", "long"])
def test_telechat2_there_and_back(name: str, container: str, tmp_path: Path) -> None:
    given = vectors("telechat2", name)
    convert(given, tmp_path / "ms", ConvertOptions("mindspore", check=True, container=container))
    convert(tmp_path / "ms", tmp_path / "back", ConvertOptions("telechat2", check=True))
    theirs, ours = load_file(given / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    if name == "gqa":  # what MindSpore itself wrote of this model
        reference = vectors("mindspore", f"gqa.{container}")
        written = tmp_path / "ms" / f"model.{container}"
        if container == "ckpt":
            a, b = Checkpoint(reference), Checkpoint(written)
            assert a.values.keys() == b.values.keys()
            assert all(torch.equal(a.tensor(key), b.tensor(key)) for key in a.values)
        else:
            a, b = load_file(reference), load_file(written)
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["llama", "tied", "with biases"])
@pytest.mark.parametrize("container", ["ckpt", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llama_there_and_back(name: str, container: str, dtype: str, tmp_path: Path, tokenizer_file: Path) -> None:
    given = native(name, tmp_path, tokenizer_file)
    convert(given, tmp_path / "ms", ConvertOptions("mindspore", dtype, check=True, container=container))
    convert(tmp_path / "ms", tmp_path / "back", ConvertOptions("native"))
    expected = build(open_model(given))
    found = build(open_model(tmp_path / "back"))
    rounded = {key: value.to(getattr(torch, dtype)).float() for key, value in expected.state_dict().items()}
    for key, value in rounded.items():
        assert torch.equal(found.state_dict()[key], value)


def test_the_states_of_a_training_checkpoint_are_ignored(tmp_path: Path, tokenizer_file: Path) -> None:
    given = native("llama", tmp_path, tokenizer_file)
    convert(given, tmp_path / "ms", ConvertOptions("mindspore"))
    path = tmp_path / "ms" / "model.ckpt"
    extra = b""
    for name, kind, size, content in (
        (b"adam_m.model.norm_out.weight", b"Float32", (2,), bytes(8)),
        (b"epoch_num", b"str", (), b"3"),
        (b"global_step", b"Int32", (1,), bytes(4)),
    ):
        sizes = b"".join(b"\x08" + bytes([n]) for n in size)
        inner = sizes + b"\x12" + bytes([len(kind)]) + kind + b"\x1a" + bytes([len(content)]) + content
        value = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(inner)]) + inner
        extra += b"\x0a" + bytes([len(value)]) + value
    data = path.read_bytes() + extra
    path.write_bytes(data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big"))
    assert equal(tmp_path / "ms", given)
    path.write_bytes(data[:-1] + b"\x01" + b"crc_num" + zlib.crc32(data).to_bytes(10, "big"))
    with pytest.raises(DamagedFileError, match="checksum"):
        open_model(tmp_path / "ms")


def test_a_tensor_in_several_slices_is_joined(tmp_path: Path) -> None:
    def value(name: bytes, content: bytes) -> bytes:
        inner = b"\x08\x04\x12\x07Float32\x1a" + bytes([len(content)]) + content
        whole = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(inner)]) + inner
        return b"\x0a" + bytes([len(whole)]) + whole

    numbers = torch.tensor([1.0, 2.0, 3.0, 4.0])
    data = numbers.numpy().tobytes()
    path = tmp_path / "model.ckpt"
    path.write_bytes(value(b"x", data[:8]) + value(b"x", data[8:]))
    assert torch.equal(Checkpoint(path).tensor("x"), numbers)
    path.write_bytes(value(b"x", data[:8]))
    with pytest.raises(DamagedFileError, match="x has 8 bytes"):
        Checkpoint(path).tensor("x")


def test_a_file_cut_anywhere_is_damaged_or_lacks_a_tensor(tmp_path: Path, tokenizer_file: Path) -> None:
    given = native("llama", tmp_path, tokenizer_file)
    convert(given, tmp_path / "ms", ConvertOptions("mindspore"))
    path = tmp_path / "ms" / "model.ckpt"
    data = path.read_bytes()
    for length in (0, 1, 2, 7, 30, len(data) // 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ArmillaryError, match=r"model\.ckpt"):
            open_model(tmp_path / "ms")


@pytest.mark.parametrize("content", [b"PK\x03\x04zip", b"\x80\x02pickle", b"hello", b"\x00" * 40])
def test_a_foreign_file_is_said_to_be_one(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(ForeignFileError, match="not a MindSpore checkpoint"):
        Checkpoint(path)


def test_what_mindspores_files_need_and_what_its_models_lack_is_named(tmp_path: Path, tokenizer_file: Path) -> None:
    given = native("llama", tmp_path, tokenizer_file)
    convert(given, tmp_path / "ms", ConvertOptions("mindspore"))
    shutil.move(tmp_path / "ms" / "config.json", tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match="--config"):
        open_model(tmp_path / "ms")
    assert open_model(tmp_path / "ms", tmp_path / "elsewhere.json").shape == open_model(given).shape
    with pytest.raises(UsageError, match="has its own"):
        open_model(given, tmp_path / "elsewhere.json")
    shutil.copy(tmp_path / "ms" / "model.ckpt", tmp_path / "ms" / "second.ckpt")
    with pytest.raises(UsageError, match=r"second\.ckpt"):
        open_model(tmp_path / "ms", tmp_path / "elsewhere.json")
    model = Transformer(ModelShape(**SIZES, qk_norm=True))
    model.init_weights(0)
    export_hf(model, tmp_path / "qwen3", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=32)
    with pytest.raises(UsageError, match="do not support qk_norm"):
        convert(tmp_path / "qwen3", tmp_path / "out", ConvertOptions("mindspore"))
    with pytest.raises(UsageError, match="--container ckpt: give"):
        convert(given, tmp_path / "out", ConvertOptions("native", container="ckpt"))


READS = """
import sys
import mindspore as ms
path, out = sys.argv[1:]
kind = "safetensors" if path.endswith("safetensors") else "ckpt"
found = ms.load_checkpoint(path, format=kind)
ms.save_checkpoint([{"name": name, "data": value} for name, value in found.items()], out, format=kind)
"""


@pytest.mark.slow
@pytest.mark.parametrize("container", ["ckpt", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mindspore_reads_what_we_write_and_we_what_it_writes(
    container: str, dtype: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    python = os.environ.get("ARMILLARY_MINDSPORE")
    if not python:
        pytest.skip("ARMILLARY_MINDSPORE does not name the Python of an environment with mindspore")
    given = native("llama", tmp_path, tokenizer_file)
    convert(given, tmp_path / "ms", ConvertOptions("mindspore", dtype, container=container))
    name = f"model.{container}"
    (tmp_path / "theirs").mkdir()
    command = [python, "-c", READS, tmp_path / "ms" / name, tmp_path / "theirs" / name]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, check=True, env=environment)
    shutil.copy(tmp_path / "ms" / "config.json", tmp_path / "theirs" / "config.json")
    assert len(mindspore_pieces(open_model(given).shape)) == len(
        mindspore_pieces(open_model(tmp_path / "theirs").shape)
    )
    assert equal(tmp_path / "ms", tmp_path / "theirs")
