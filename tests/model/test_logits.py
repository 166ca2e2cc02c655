"""``write_logits``: the logits of a model on disk, and wrong files named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.model import Transformer, export_hf, open_model, write_logits
from armillary.recipe import ArmillaryError, Family, UsageError

SHAPE = Family(width_per_layer=8, head_dim=8).shape(1, 300)


@pytest.fixture(scope="module")
def exported(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Path]:
    model = Transformer(SHAPE)
    model.init_weights(0)
    folder = tmp_path_factory.mktemp("logits") / "model"
    export_hf(model, folder, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    return model, folder


def test_the_logits_of_a_folder_are_the_models(exported: tuple[Transformer, Path], tmp_path: Path) -> None:
    model, folder = exported
    tokens = torch.randint(0, 300, (3, 17))
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    write_logits(folder, tmp_path / "tokens.safetensors", tmp_path / "out.safetensors")
    (name, found), *others = load_file(tmp_path / "out.safetensors").items()
    assert name == "logits" and not others and found.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found, model(tokens), rtol=1e-6, atol=1e-6)


def test_an_older_file_is_replaced_only_with_force(exported: tuple[Transformer, Path], tmp_path: Path) -> None:
    tokens, out = tmp_path / "tokens.safetensors", tmp_path / "out.safetensors"
    save_file({"tokens": torch.tensor([[1, 2, 3]])}, tokens)
    out.write_bytes(b"other")
    with pytest.raises(UsageError, match=r"out\.safetensors: exists; .*--force"):
        write_logits(exported[1], tokens, out)
    assert out.read_bytes() == b"other"
    write_logits(exported[1], tokens, out, force=True)
    assert load_file(out)["logits"].shape == (1, 3, 300)
    weights = exported[1] / "model.safetensors"
    before = weights.read_bytes()
    for inside in (tokens, weights):
        with pytest.raises(UsageError, match="is a file of the model, or the tokens"):
            write_logits(exported[1], tokens, inside, force=True)
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"ids": torch.zeros(1, 2, dtype=torch.int64)}, "no tensor 'tokens'"),
        ({"tokens": torch.zeros(1, 2)}, "float32"),
        ({"tokens": torch.zeros(2, dtype=torch.int64)}, r"\[2\] and must be"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.int64)}, r"\[1, 0\] and must be"),
        ({"tokens": torch.tensor([[1, 2], [3, 300]])}, r"token 300 at \[1, 1\]"),
        ({"tokens": torch.tensor([[1, -100]])}, r"token -100 at \[0, 1\]"),
        (None, "cannot be read"),
    ],
)
def test_tokens_that_are_wrong_are_refused(
    exported: tuple[Transformer, Path], tensors: dict[str, torch.Tensor] | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.safetensors"
    if tensors is not None:
        save_file(tensors, path)
    with pytest.raises(UsageError, match=said):
        write_logits(exported[1], path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=str(path)):
            open_model(path)


def test_a_missing_shard_is_named(exported: tuple[Transformer, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in exported[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "model-2.safetensors"}}')
    with pytest.raises(ArmillaryError, match=r"model-2\.safetensors, which model\.safetensors\.index\.json names"):
        open_model(folder)
