"""Weights on disk: exact round trips, agreement with transformers, named errors, and a kill at every step."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.model import Transformer, export_hf, import_hf, load_weights, replace_folder, save_weights
from armillary.model.weights import files
from armillary.recipe import ArmillaryError, DamagedFileError, Family, ModelShape, UsageError

END = "<|end|>"  # of the tokenizer in conftest.py
SHAPES = {
    f"{'qwen' if qk_norm else 'llama'}-{'tied' if tied else 'untied'}-{'gqa' if group > 1 else 'mha'}": Family(
        qk_norm=qk_norm, tied_embeddings=tied, query_heads_per_kv_head=group, rope_theta=5000.0
    ).shape(2, 320)
    for qk_norm in (False, True)
    for tied in (False, True)
    for group in (1, 2)
}
SMALL = Family(width_per_layer=8, head_dim=8).shape(1, 300)


def built(shape: ModelShape, seed: int = 0) -> Transformer:
    """A model with gains other than one, so that a lost or exchanged norm shows."""
    model = Transformer(shape)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def same(one: Transformer, other: Transformer) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def exported(model: Transformer, folder: Path, tokenizer_file: Path, **changed: Any) -> Path:
    settings = {"tokenizer_file": tokenizer_file, "end_token": END, "context_length": 64, **changed}
    export_hf(model, folder, **settings)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# -- our own format


@pytest.mark.parametrize("name", ["llama-untied-mha", "qwen-tied-gqa"])
def test_own_weights_come_back_bit_for_bit_and_train_on(name: str, tmp_path: Path) -> None:
    model, path = built(SHAPES[name]), tmp_path / "deep" / "model.safetensors"
    save_weights(model, path)
    loaded = load_weights(path, SHAPES[name])
    assert same(loaded, model)
    tokens = torch.arange(20).view(2, 10)
    objective, _ = loaded.loss(tokens)
    objective.backward()
    assert objective.item() == model.loss(tokens)[0].item()
    assert names(path.parent) == ["model.safetensors"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(built(SHAPES["llama-tied-mha"]), path)
    wanted = SHAPES["llama-untied-mha"].model_copy(update={"n_layers": 1, "vocab_size": 321})
    with pytest.raises(ArmillaryError) as caught:
        load_weights(path, wanted)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "missing output.weight" in message
    assert "unexpected layers.1.attention_norm.weight" in message
    assert "embedding.weight is [320, 64] and should be [321, 64]" in message
    assert str(path) in message


def test_a_torn_or_missing_weight_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ArmillaryError, match=r"model\.safetensors"):
        load_weights(path, SMALL)
    save_weights(built(SMALL), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArmillaryError, match=r"model\.safetensors"):
        load_weights(path, SMALL)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{}", (10**9).to_bytes(8, "little") + b"{}"])
def test_what_is_no_weight_file_is_an_error_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors: cannot be read as weights"):
        load_weights(path, SMALL)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedFileError, match=r"model\.safetensors: cannot be read as weights"):
        load_weights(path, SMALL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_a_weight_of_another_type_is_named(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = {name: tensor.detach() for name, tensor in built(SMALL).state_dict().items()}
    state["norm.weight"] = state["norm.weight"].to(dtype)
    save_file(state, path)
    with pytest.raises(ArmillaryError, match=r"norm\.weight is .* and should be F32"):
        load_weights(path, SMALL)


# -- the folder of transformers


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "[" * 100_000, '{"model_type": "llama", "num_attention_heads": "x", "hidden_size": 8}']
)
def test_a_configuration_that_is_torn_or_none_is_refused(text: str, tmp_path: Path, tokenizer_file: Path) -> None:
    folder = exported(built(SMALL), tmp_path / "model", tokenizer_file)
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json"):
        import_hf(folder)


@pytest.mark.parametrize(
    "change",
    [{"rope_parameters": "x", "rope_scaling": None}, {"layer_types": 3}, {"num_hidden_layers": 10**7}],
)
def test_values_of_another_kind_are_refused(change: dict[str, Any], tmp_path: Path, tokenizer_file: Path) -> None:
    folder = exported(built(SMALL), tmp_path / "model", tokenizer_file)
    _edit(folder / "config.json", **change)
    with pytest.raises(UsageError, match=r"config\.json"):
        import_hf(folder)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_an_index_of_weights_that_is_torn_is_refused(index: str, tmp_path: Path, tokenizer_file: Path) -> None:
    folder = exported(built(SMALL), tmp_path / "model", tokenizer_file)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ArmillaryError, match="its weights cannot be read"):
        import_hf(folder)


def test_quantised_numbers_without_their_scale_are_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = exported(built(SMALL), tmp_path / "model", tokenizer_file)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArmillaryError, match=r"model\.norm\.weight is int8"):
        import_hf(folder)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits_from_an_export(
    name: str, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    shape = SHAPES[name]
    model = built(shape)
    folder = exported(model, tmp_path / "model", tokenizer_file)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = torch.randint(0, shape.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in theirs.parameters()) == shape.parameters
    assert same(import_hf(folder), model)


def test_transformers_reads_tokenizer_and_generation_settings(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    folder = exported(built(SHAPES["llama-untied-mha"]), tmp_path / "model", tokenizer_file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "浑仪 shows the heavens, é  !\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == END and tokenizer.chat_template is None
    assert tokenizer.model_max_length == 64
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.config.max_position_embeddings == 64


@pytest.mark.parametrize(("kind", "tied"), [("Llama", False), ("Llama", True), ("Qwen3", False), ("Qwen3", True)])
@pytest.mark.parametrize("shard", ["1GB", "50KB"])
def test_a_model_made_by_transformers_is_imported(kind: str, tied: bool, shard: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=80,
        vocab_size=300,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 123456.0},
        initializer_range=0.3,
    )
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "50KB")
    ours = import_hf(tmp_path)
    assert ours.shape.rope_theta == 123456.0 and ours.shape.tied_embeddings == tied
    tokens = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_half_precision_exports_round_once_and_come_back_widened(tmp_path: Path, tokenizer_file: Path) -> None:
    model = built(SMALL)
    folder = exported(model, tmp_path / "model", tokenizer_file, dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    for ours, back in zip(model.parameters(), import_hf(folder).parameters(), strict=True):
        assert torch.equal(ours.bfloat16().float(), back)


def test_a_configuration_of_before_transformers_5_is_read(tmp_path: Path, tokenizer_file: Path) -> None:
    model = built(SHAPES["llama-untied-mha"])
    folder = exported(model, tmp_path / "model", tokenizer_file)
    # without the newer key, the derivable sizes and with a table that old checkpoints carried
    _edit(folder / "config.json", drop=("rope_parameters", "head_dim", "num_key_value_heads"), rope_scaling=None)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors")
    loaded = import_hf(folder)
    assert loaded.shape == model.shape
    assert same(loaded, model)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama", {"model_type": "gpt2"}),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}}),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}),
        ("qwen", {"use_sliding_window": True}),
        ("qwen", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("llama", {"num_hidden_layers": 0}),
        ("llama", {"hidden_size": None}),
        ("qwen", {"head_dim": None}),
        ("llama", {"vocab_size": "many"}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_we_do_not_compute_is_refused_by_key(
    kind: str, change: dict[str, Any], tmp_path: Path, tokenizer_file: Path
) -> None:
    folder = exported(built(SHAPES[f"{kind}-untied-gqa"]), tmp_path / "model", tokenizer_file)
    _edit(folder / "config.json", **change)
    with pytest.raises(UsageError) as caught:
        import_hf(folder)
    assert next(iter(change)) in str(caught.value)
    assert "config.json" in str(caught.value)


def test_weights_that_the_configuration_does_not_tell_of_are_named(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = exported(built(SHAPES["llama-untied-mha"]), tmp_path / "model", tokenizer_file)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArmillaryError) as caught:
        import_hf(folder)
    assert "missing model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "unexpected model.layers.0.self_attn.q_proj.bias" in str(caught.value)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArmillaryError, match="cannot be read"):
        import_hf(folder)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"end_token": "<eos>"}, "<eos>"), ({"tokenizer_file": Path("no.json")}, r"no\.json")],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    changed: dict[str, Any], named: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    with pytest.raises(UsageError, match=named):
        exported(built(SMALL), tmp_path / "model", **{"tokenizer_file": tokenizer_file, **changed})
    assert names(tmp_path) == []


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(UsageError, match="the model only 200"):
        exported(built(SMALL.model_copy(update={"vocab_size": 200})), tmp_path / "model", tokenizer_file)


# -- whole or not at all


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path, tokenizer_file: Path) -> None:
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        exported(built(SMALL), tmp_path, tokenizer_file)
    with pytest.raises(UsageError, match="is a file"):
        exported(built(SMALL), thesis, tokenizer_file)
    assert thesis.read_text() == "years of work"


def test_an_export_that_fails_leaves_the_older_one(tmp_path: Path, tokenizer_file: Path) -> None:
    model = built(SMALL)
    folder = exported(model, tmp_path / "model", tokenizer_file)
    with pytest.raises(RuntimeError, match="on purpose"), replace_folder(folder) as aside:
        (aside / "config.json").write_text("{}")
        raise RuntimeError("on purpose")
    assert same(import_hf(folder), model)
    assert names(tmp_path) == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "model").symlink_to("large-disk")
    for seed in (0, 1):
        exported(built(SMALL, seed), tmp_path / "model", tokenizer_file)
        assert same(import_hf(tmp_path / "large-disk"), built(SMALL, seed))
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path) == ["large-disk", "model"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize(
    "older", [pytest.param(True, id="over an older one"), pytest.param(False, id="first", marks=pytest.mark.slow)]
)
def test_an_export_killed_anywhere_is_whole_or_not_there(
    older: bool, exchange: bool, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    old, new = built(SMALL, 1), built(SMALL, 2)
    folder, kept = tmp_path / "model", exported(old, tmp_path / "kept" / "model", tokenizer_file)
    seen = set()
    for point in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        if older:
            shutil.copytree(kept, folder)
        finished = _killed_at(point, lambda: exported(new, folder, tokenizer_file) and None)
        if folder.exists():
            found = import_hf(folder)
            assert same(found, new) or (older and same(found, old))
            seen.add("new" if same(found, new) else "old")
        else:
            seen.add("none")
            # only where names cannot be exchanged, and then the older one lies whole beside it
            assert not older or (not exchange and same(import_hf(tmp_path / ".model.old"), old))
        if finished:
            break
    assert finished and point > 20
    assert seen == ({"old", "new"} | (set() if exchange else {"none"}) if older else {"none", "new"})
    # what the killed ones left is cleared by the one that finished
    assert names(tmp_path) == ["kept", "model"]


def test_saving_weights_killed_anywhere_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    old, new = built(SMALL, 1), built(SMALL, 2)
    for point in range(1, 50):
        save_weights(old, path)
        finished = _killed_at(point, lambda: save_weights(new, path))
        loaded = load_weights(path, SMALL)
        assert same(loaded, old) or same(loaded, new)
        if finished:
            break
    assert finished and point > 3 and same(loaded, new)


def _killed_at(point: int, work: Callable[[], None]) -> bool:
    """Do ``work`` in a child that dies right before its ``point``-th touch of the file system; whether it finished."""
    child = os.fork()
    if child == 0:
        remaining = point

        def count(event: str, _: tuple[Any, ...]) -> None:
            nonlocal remaining
            # the look-up of a C function stands for the call that exchanges two names
            if event == "open" or event.startswith(("os.", "shutil.", "ctypes.dlsym")):
                remaining -= 1
                if remaining == 0:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    return os.waitstatus_to_exitcode(status) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _edit(path: Path, drop: tuple[str, ...] = (), **changed: Any) -> None:
    config = json.loads(path.read_text())
    config = {key: value for key, value in {**config, **changed}.items() if key not in drop}
    path.write_text(json.dumps(config))
