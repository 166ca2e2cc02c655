"""Merging folders: equality with mergekit's own run, refusals, kills, damage, lineage, memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.model import Transformer, export_hf
from armillary.post.merge import MergeOptions, merge, read_record
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, ModelShape, UsageError
from armillary.recipe.sealed import write_sealed

SHAPE = ModelShape(
    n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, vocab_size=64, tied_embeddings=True
)


def write_tokenizer(path: Path, words: int = 60) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, **{f"w{i}": i + 1 for i in range(words)}}, "<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two models near it and one that was drawn anew, each a Hugging Face folder."""
    place = tmp_path_factory.mktemp("family")
    write_tokenizer(place / "tokenizer.json")
    torch.manual_seed(0)
    base = Transformer(SHAPE)
    for name, seed in (("base", 0), ("one", 1), ("two", 2), ("stranger", 3)):
        torch.manual_seed(seed)
        model = Transformer(SHAPE)
        if name != "stranger":
            step = 0.0 if name == "base" else 0.1
            model.load_state_dict({k: v + step * torch.randn_like(v) * v.std() for k, v in base.state_dict().items()})
        export_hf(
            model,
            place / name,
            tokenizer_file=place / "tokenizer.json",
            end_token="<end>",
            context_length=64,
        )
    return place


@pytest.fixture
def copies(family: Path, tmp_path: Path) -> Path:
    """The family in a folder of the test's own."""
    return Path(shutil.copytree(family, tmp_path / "family"))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_merge_is_a_folder_that_transformers_loads_and_names_its_parents(family: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    done = []
    record = merge(
        family / "base", [family / "one", family / "two"], out, MergeOptions(), lambda d, t: done.append((d, t))
    )
    tensors = [load_file(family / name / "model.safetensors") for name in ("one", "two")]
    found = load_file(out / "model.safetensors")
    assert found.keys() == tensors[0].keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (tensors[0][name] + tensors[1][name]) / 2, rtol=0, atol=1e-6)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(out)
    assert record == read_record(out)
    assert [Path(one["path"]).name for one in record["inputs"]] == ["base", "one", "two"]
    merged, *_ = (f"weights:{record['outputs']['model.safetensors']}",)
    origins = {origin for node, _, origin in record["lineage"] if node == merged}
    assert origins == {f"weights:{one['sha256']['model.safetensors']}" for one in record["inputs"]}
    assert done[-1][0] == done[-1][1] and [d for d, _ in done] == sorted(d for d, _ in done)
    assert {path.name for path in tmp_path.iterdir()} == {"merged", ".merged.lock"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "config"),
    [
        (MergeOptions("linear", (0.3, 0.5)), {"merge_method": "linear"}),
        (MergeOptions("task", (0.3, 0.5)), {"merge_method": "task_arithmetic"}),
        (MergeOptions("ties", (0.3, 0.5), density=0.4), {"merge_method": "ties"}),
        (MergeOptions("slerp", (0.7, 0.3)), {"merge_method": "slerp", "parameters": {"t": 0.3}}),
        (MergeOptions("dare", (0.3, 0.5), density=1.0), {"merge_method": "dare_linear"}),
    ],
)
def test_folders_equal_those_of_mergekit(
    family: Path, tmp_path: Path, options: MergeOptions, config: dict[str, Any]
) -> None:
    config_module = pytest.importorskip("mergekit.config", reason="needs mergekit, the oracle")
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions as TheirOptions

    names = ["one", "two"]
    models: list[dict[str, Any]] = [
        {"model": str(family / name), "parameters": {"weight": weight, "density": options.density}}
        for name, weight in zip(names, options.weights, strict=True)
    ]
    base = "one" if options.method == "slerp" else "base"
    if options.method == "linear":
        models = [{**m, "parameters": {"weight": m["parameters"]["weight"]}} for m in models]
    elif options.method == "slerp":
        models = [{"model": m["model"]} for m in models]
    whole = {**config, "models": models, "dtype": "float32", "base_model": str(family / base)}
    if options.method == "linear":
        del whole["base_model"]
    run_merge(
        config_module.MergeConfiguration.model_validate(whole), str(tmp_path / "theirs"), TheirOptions(quiet=True)
    )
    merge(family / "base", [family / name for name in names], tmp_path / "ours", options)
    ours, theirs = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)


def test_shards_and_half_precision_stay_as_the_base_has_them(copies: Path, tmp_path: Path) -> None:
    for name in ("base", "one"):
        tensors = {k: v.bfloat16() for k, v in load_file(copies / name / "model.safetensors").items()}
        (copies / name / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, inside in parts.items():
            save_file({key: tensors[key] for key in inside}, copies / name / file)
        weight_map = {key: file for file, inside in parts.items() for key in inside}
        (copies / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        change_json(copies / name / "config.json", lambda c: c.update(dtype="bfloat16", torch_dtype="bfloat16"))
    out = tmp_path / "merged"
    merge(copies / "base", [copies / "one", copies / "two"], out, MergeOptions("task", (1.0, 0.0)))
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == weight_map
    for file in parts:
        found, wanted = load_file(out / file), load_file(copies / "one" / file)
        assert all(tensor.dtype == torch.bfloat16 for tensor in found.values())
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[key], rtol=0.01, atol=1e-3)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_second_call_does_nothing_and_another_one_is_refused(family: Path, tmp_path: Path) -> None:
    out, models = tmp_path / "merged", [family / "one", family / "two"]
    record = merge(family / "base", models, out, MergeOptions("ties"))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert merge(family / "base", models, out, MergeOptions("ties", seed=7)) == record  # ties draws nothing
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UsageError, match=r"density was 0\.5 and is 0\.3"):
        merge(family / "base", models, out, MergeOptions("ties", density=0.3))
    with pytest.raises(UsageError, match="the base or a model has changed"):
        merge(family / "base", models[::-1], out, MergeOptions("ties"))
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(
        DamagedFileError,
        match=r"model\.safetensors: is missing or was changed after it was written; remove",
    ):
        merge(family / "base", models, out, MergeOptions("ties"))
    write_sealed(out / "record.json", {"format": 2, "stage": "merge"})
    with pytest.raises(ForeignFileError, match="format 2"):
        merge(family / "base", models, out, MergeOptions("ties"))


def test_what_is_no_merge_is_never_replaced(family: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(UsageError, match=r"contains 'chapter\.tex' but no merge"):
        merge(family / "base", [family / "one"], tmp_path / "thesis", MergeOptions())
    with pytest.raises(UsageError, match="is a file"):
        merge(family / "base", [family / "one"], tmp_path / "thesis" / "chapter.tex", MergeOptions())
    (tmp_path / "empty").mkdir()
    merge(family / "base", [family / "one"], tmp_path / "empty", MergeOptions())


def fewer_layers(place: Path) -> None:
    change_json(place / "two" / "config.json", lambda c: c.update(num_hidden_layers=1))


def other_kind(place: Path) -> None:
    change_json(
        place / "two" / "config.json", lambda c: c.update(model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    )


def other_rope(place: Path) -> None:
    change_json(place / "two" / "config.json", lambda c: c.update(rope_theta=5e5, rope_parameters={"rope_theta": 5e5}))


def other_size(place: Path) -> None:
    path = place / "two" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.norm.weight": torch.ones(31)}, path)


def lacks_tensor(place: Path) -> None:
    path = place / "two" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)


def swapped_tokens(place: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        vocabulary = document["model"]["vocab"]
        vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]

    change_json(place / "two" / "tokenizer.json", swap)


def added_token(place: Path) -> None:
    token = {"id": 61, "content": "<|im_start|>", "special": True}
    change_json(place / "two" / "tokenizer.json", lambda d: d["added_tokens"].append(token))


def other_cut(place: Path) -> None:
    change_json(place / "two" / "tokenizer.json", lambda d: d.update(pre_tokenizer={"type": "WhitespaceSplit"}))


def no_tokenizer(place: Path) -> None:
    (place / "two" / "tokenizer.json").unlink()


def drawn_anew(place: Path) -> None:
    shutil.rmtree(place / "two")
    (place / "stranger").rename(place / "two")


def an_adapter(place: Path) -> None:
    (place / "two" / "config.json").unlink()
    (place / "two" / "adapter_config.json").write_text("{}")


def quantised(place: Path) -> None:
    change_json(place / "two" / "config.json", lambda c: c.update(quantization_config={"bits": 4}))


def not_there(place: Path) -> None:
    shutil.rmtree(place / "two")


def no_weights(place: Path) -> None:
    (place / "two" / "model.safetensors").rename(place / "two" / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fewer_layers, r"architectures differ: n_layers is 1 in .*two and 2 in .*base"),
        (other_kind, "architectures differ: model_type is 'qwen3'"),
        (other_rope, r"architectures differ: rope_theta is 500000\.0"),
        (other_size, r"tensors differ: model\.norm\.weight is \[31\] in .*two and \[32\] in .*base"),
        (lacks_tensor, r"tensors differ: .*two lacks model\.norm\.weight"),
        (swapped_tokens, r"tokenizers differ: the token 'w1' is 2 in .*base and is 3 in .*two \(2 tokens differ\)"),
        (added_token, r"tokenizers differ: the token '<\|im_start\|>' is not in .*base and is 61 in .*two"),
        (other_cut, "tokenizers differ: 'pre_tokenizer'"),
        (no_tokenizer, "no tokenizer file in common"),
        (drawn_anew, r"does not come from .*base: the median correlation of their matrices is -?0\.0"),
        (an_adapter, "only a LoRA adapter"),
        (quantised, "quantised"),
        (not_there, "is not a folder"),
        (no_weights, r"neither model\.safetensors nor"),
    ],
)
def test_models_that_do_not_agree_are_refused_with_what_differs(
    copies: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    change(copies)
    with pytest.raises(UsageError, match=said):
        merge(copies / "base", [copies / "one", copies / "two"], tmp_path / "merged", MergeOptions())
    assert not (tmp_path / "merged").exists()


def test_what_does_not_prevent_a_merge_is_noted(copies: Path, tmp_path: Path) -> None:
    (copies / "one" / "chat_template.jinja").write_text("{{ messages }}")
    change_json(copies / "two" / "config.json", lambda c: c.update(eos_token_id=3, transformers_version="9"))
    # another notation of the same merges and a stored second name of a tied matrix change nothing
    tensors = load_file(copies / "two" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copies / "two" / "model.safetensors")
    record = merge(copies / "base", [copies / "one", copies / "two"], tmp_path / "merged", MergeOptions())
    assert any(note.startswith("chat_template.jinja differs") for note in record["notes"])
    assert any(note.startswith("eos_token_id is 0") for note in record["notes"])
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "{{ messages }}"


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 64)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def with_nan(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize("damage", [torn, no_header, empty, with_nan])
def test_damaged_weights_stop_the_merge_and_leave_nothing(
    copies: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(copies / "two" / "model.safetensors")
    with pytest.raises(ArmillaryError, match="two"):
        merge(copies / "base", [copies / "one", copies / "two"], tmp_path / "merged", MergeOptions())
    assert {path.name for path in tmp_path.iterdir()} <= {"family", ".merged.lock"}


def test_an_index_cannot_lead_out_of_its_folder(copies: Path, tmp_path: Path) -> None:
    weight_map = {"model.norm.weight": "../one/model.safetensors"}
    (copies / "two" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(DamagedFileError, match="not a file in the folder"):
        merge(copies / "base", [copies / "two"], tmp_path / "merged", MergeOptions())


def test_a_parent_that_changes_meanwhile_is_noticed(copies: Path, tmp_path: Path) -> None:
    path = copies / "one" / "model.safetensors"
    with pytest.raises(DamagedFileError, match="changed during the merge"):
        merge(copies / "base", [copies / "one"], tmp_path / "merged", MergeOptions(), lambda *_: os.utime(path, (1, 1)))
    assert not (tmp_path / "merged").exists()


def test_numbers_that_do_not_fit_are_refused(copies: Path, tmp_path: Path) -> None:
    path = copies / "base" / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(path).items()}, path)
    with pytest.raises(ArmillaryError, match="exceed the range of F16"):
        merge(copies / "base", [copies / "one"], tmp_path / "merged", MergeOptions("task", (1e9,)))


KILLED = """
import os, signal, sys
from pathlib import Path
from armillary.post.merge import MergeOptions, merge
place, at = Path(sys.argv[1]), sys.argv[2]
calls = 0
def kill(name):
    def step(self, *args, _real=getattr(Path, name), **more):
        if name == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return _real(self, *args, **more)
    setattr(Path, name, step)
for name in ("mkdir", "write_text", "rename", "replace"):
    kill(name)
def progress(done, total):
    if at == "tensor" and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
import armillary.recipe.lock
(place / "out").mkdir(exist_ok=True) if at != "mkdir" else None
merge(place / "base", [place / "one", place / "two"], place / "out" / "merged", MergeOptions("task"), progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["mkdir", "tensor", "write_text", "replace", "rename"])
def test_a_kill_leaves_nothing_under_the_name_and_the_next_call_clears_up(copies: Path, at: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(copies), at], check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    out = copies / "out" / "merged"
    assert not out.exists()
    merge(copies / "base", [copies / "one", copies / "two"], out, MergeOptions("task"))
    read_record(out)
    assert {path.name for path in out.parent.iterdir()} == {"merged", ".merged.lock"}


MEASURED = """
import resource, sys
from pathlib import Path
import torch
from armillary.post.merge import MergeOptions, merge
place = Path(sys.argv[1])
merge(place / "base", [place / "one"], place / "warm", MergeOptions())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for method in ("linear", "task", "slerp", "ties", "dare"):
    merge(place / "large", [place / "larger", place / "largest"], place / method, MergeOptions(method))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_that_of_a_few_tensors(copies: Path) -> None:
    """Twenty-four tensors of 8 MiB, two models over a base: far less is held than a model, let alone three."""
    generator = torch.Generator().manual_seed(0)
    numbers = {f"layers.{i}.weight": torch.randn(1024, 2048, generator=generator) for i in range(24)}
    for name in ("large", "larger", "largest"):
        shutil.copytree(copies / "base", copies / name)
        save_file(
            {key: v + (0.01 if name != "large" else 0.0) for key, v in numbers.items()},
            copies / name / "model.safetensors",
        )
    ended = subprocess.run([sys.executable, "-c", MEASURED, str(copies)], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 10 * 8
