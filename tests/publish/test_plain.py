"""Models without lineage on their way to a hub: the card claims only what the files and records prove."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from publications import SHAPE, built

from armillary.model import ConvertOptions, Transformer, convert, export_hf
from armillary.path import verify
from armillary.publish import Additions, check_lineage, origins
from armillary.publish.leaving import check_leaving
from armillary.publish.ledger import fingerprints
from armillary.publish.stage import Staged, stage
from armillary.recipe import ModelShape, UsageError, write_sealed

NOTHING = Additions()
RECORD: dict[str, Any] = {
    "format": 1,
    "run": "feed",
    "steps": 12,
    "data": {"conversations": 3, "trained": 99},
    "loss_before": 2.5,
    "loss_after": 1.25,
    "settings": {"model": "a" * 64, "data": "b" * 64, "lora": None},
    "edges": [["model:c", "trained by", "run:feed"], ["run:feed", "starts from", "model:a"]],
}


@pytest.fixture
def plain(tmp_path: Path, tokenizer_file: Path) -> Path:
    folder = tmp_path / "out" / "model"
    export_hf(built(), folder, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=32)
    return folder


def card(staged: Staged) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    _, front, text = (staged.folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_folder_without_lineage_gets_a_card_that_claims_nothing(plain: Path, tmp_path: Path) -> None:
    before = fingerprints(plain)
    staged = stage(plain, tmp_path / "staged", "sphere", NOTHING)
    checked = check_leaving(staged.folder)
    assert checked.difference is not None or "transformers" in str(checked.skipped)
    front, text = card(staged)
    assert front["license"] == "unknown" and "model-index" not in front and "base_model" not in front
    for said in (
        "How it was trained is not recorded here.",
        "此处没有其训练记录。",
        f"{SHAPE.parameters:,} parameters",
    ):
        assert said in text
    (kind,) = json.loads((plain / "config.json").read_text())["architectures"]
    assert f"# {kind}\n" in text and "passes over its text" not in text
    assert origins(staged.folder / "model.safetensors") == []
    assert fingerprints(plain) == before, "the model itself does not change"
    published = Path(shutil.copytree(staged.folder, tmp_path / "fetched"))
    assert verify(published).problems == []
    assert stage(plain, tmp_path / "again", "sphere", NOTHING).digests == staged.digests
    assert stage(published, tmp_path / "on", "sphere", NOTHING).digests == staged.digests, "a publication goes on"


def test_the_record_of_a_fine_tuning_is_evidence_only_of_its_own_files(plain: Path, tmp_path: Path) -> None:
    write_sealed(plain.parent / "record.json", {**RECORD, "files": fingerprints(plain)})
    staged = stage(plain, tmp_path / "staged", "sphere", NOTHING)
    _, text = card(staged)
    for said in ("Run `feed` fine-tuned it in 12 steps", "3 conversations", "2.5000 before and 1.2500 after"):
        assert said in text
    assert "微调前为 2.5000" in text
    assert origins(staged.folder / "model.safetensors") == ["model:c", "run:feed", "model:a"]
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    staged = stage(plain, tmp_path / "changed", "sphere", NOTHING)
    assert "not recorded here" in card(staged)[1] and check_lineage(staged.folder)["training"] is None
    (plain.parent / "record.json").write_text("{")
    assert "not recorded here" in card(stage(plain, tmp_path / "torn", "sphere", NOTHING))[1]


def test_the_owners_card_follows_ours_as_the_owners(plain: Path, tmp_path: Path) -> None:
    front = {"license": "other", "license_name": "my-own", "language": "zh", "base_model": "them/base", "tags": ["x"]}
    (plain / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# Mine\n\nIt is the best.\n")
    found, text = card(stage(plain, tmp_path / "staged", "sphere", NOTHING))
    assert (found["license"], found["license_name"], found["language"]) == ("other", "my-own", ["zh"])
    assert found["base_model"] == "them/base"
    assert text.index("not recorded here") < text.index("## From the owner") < text.index("It is the best.")
    found, _ = card(stage(plain, tmp_path / "given", "sphere", Additions("mit", ("en",))))
    assert (found["license"], found["language"]) == ("mit", ["en"]), "what is given counts more"
    (plain / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UsageError, match=r"README\.md: cannot be read as a card"):
        stage(plain, tmp_path / "torn", "sphere", NOTHING)


@pytest.mark.parametrize("name", ["optimizer.pt", ".git/config", "pytorch_model.bin", "notes.txt"])
def test_files_that_are_not_of_a_model_stay(name: str, plain: Path, tmp_path: Path) -> None:
    (plain / name).parent.mkdir(exist_ok=True)
    (plain / name).write_text("x")
    with pytest.raises(UsageError, match=f"contains '{name.split('/', maxsplit=1)[0]}'"):
        stage(plain, tmp_path / "staged", "sphere", NOTHING)


def test_what_is_not_a_model_or_leaks_is_refused(plain: Path, tmp_path: Path) -> None:
    secret = "hf_" + "a" * 34
    (plain / "README.md").write_text(f"token {secret} in /home/ada/models")
    with pytest.raises(UsageError, match="a Hugging Face token") as caught:
        check_leaving(stage(plain, tmp_path / "staged", "sphere", NOTHING).folder, load=False)
    assert secret not in str(caught.value)
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"model_type": "gemma"}))
    with pytest.raises(UsageError, match="model_type is 'gemma'"):
        stage(plain, tmp_path / "other", "sphere", NOTHING)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not a model"):
        stage(tmp_path / "empty", tmp_path / "none", "sphere", NOTHING)


def test_other_formats_name_their_library(tmp_path: Path, tokenizer_file: Path) -> None:
    model = Transformer(
        ModelShape(n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, vocab_size=300)
    )
    model.init_weights(0)
    export_hf(model, tmp_path / "hf", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=32)
    for to, library, frameworks in (
        ("native", "armillary", ["PyTorch"]),
        ("mindspore", "mindspore", ["MindSpore"]),
        ("gguf", "gguf", None),
    ):
        if to == "gguf":
            pytest.importorskip("gguf", reason="needs the extra llamacpp")
        convert(tmp_path / "hf", tmp_path / to, ConvertOptions(to))
        staged = stage(tmp_path / to, tmp_path / f"staged-{to}", "sphere", NOTHING)
        front, text = card(staged)
        assert (front["library_name"], front.get("frameworks")) == (library, frameworks)
        assert "AutoModelForCausalLM" not in text
        assert "transformers does not read" in str(check_leaving(staged.folder).skipped)


def test_the_header_of_a_gguf_file_is_searched(plain: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra llamacpp")
    (plain / "chat_template.jinja").write_text("{# from /home/ada/templates #}{{ messages }}")
    convert(plain, tmp_path / "gguf", ConvertOptions("gguf"))
    assert gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").get_field("tokenizer.chat_template") is not None
    (tmp_path / "gguf" / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match=r"model\.gguf: metadata: contains .*/home/ada/templates"):
        check_leaving(stage(tmp_path / "gguf", tmp_path / "staged", "sphere", NOTHING).folder)
