"""A conversion with its loss measured: the card says what it cost, and a publication stays one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from publications import LINEAGE, SPEC

from armillary.model import ConvertOptions
from armillary.path import verify
from armillary.publish import Additions, check_lineage, check_sums, convert_measured
from armillary.publish.leaving import check_leaving
from armillary.publish.ledger import sha256
from armillary.publish.stage import stage
from armillary.recipe import Family, UsageError


@pytest.fixture(scope="module")
def model(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publication with the tokenizer of the corpus, wide enough to be packed."""
    from armillary.model import Transformer
    from armillary.publish import publish

    shape = Family(width_per_layer=32, head_dim=16).shape(1, tiny_corpus.vocab_size)
    built = Transformer(shape)
    built.init_weights(0)
    folder = tmp_path_factory.mktemp("published") / "sphere"
    end = tiny_corpus.tokenizer().id_to_token(tiny_corpus.manifest.end_of_text_id)
    spec = SPEC.model_copy(update={"model": shape, "context_length": 16})
    lineage = {**LINEAGE, "spec": spec.model_dump(mode="json")}
    publish(built, folder, tokenizer_file=tiny_corpus.tokenizer_file, end_token=end, context_length=16, lineage=lineage)
    return folder


@pytest.mark.parametrize(("to", "quantize"), [("huggingface", "int4"), ("gguf", "q8_0")])
def test_a_publication_stays_one_and_its_card_says_the_cost(
    to: str, quantize: str, model: Path, tiny_corpus: Any, tmp_path: Path
) -> None:
    if to == "gguf":
        pytest.importorskip("gguf", reason="needs the extra llamacpp")
    out = tmp_path / "small"
    found, rows = convert_measured(model, out, ConvertOptions(to, quantize=quantize), tiny_corpus.path)
    assert found.dtype == quantize and rows[-1].domain == "all"
    document = check_lineage(out)
    assert document["conversion"]["weights"]["sha256"] == check_lineage(model)["weights"]["sha256"]
    assert document["weights"]["file"] == ("model.gguf" if to == "gguf" else "model.safetensors")
    assert document["run"] == LINEAGE["run"] and len(check_sums(out)) == len(document["files"]) + 1
    card = (out / "README.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {row.domain} | {row.tokens:,} | {row.before:.4f} | {row.after:.4f} |" in card
    assert "## Effect of the conversion" in card and "### 转换的影响" in card
    assert ("compressed-tensors" in card) == (quantize == "int4") and ("llama-cli" in card) == (to == "gguf")
    results = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    losses = {result["dataset"]["name"]: result["metrics"][0]["value"] for result in results}
    assert losses["all"] == pytest.approx(rows[-1].after, abs=1e-5)
    assert verify(out).problems == []
    content = (out / "README.md").read_bytes()
    (out / "README.md").write_bytes(content + b" ")
    (problem,) = verify(out / "SHA256SUMS").problems
    assert problem.file.name == "README.md" and "changed or damaged" in problem.what
    (out / "README.md").write_bytes(content)
    # on its way to a hub it is what it was
    staged = stage(out, tmp_path / "staged", "small", Additions("mit"))
    checked = check_leaving(staged.folder)
    assert checked.skipped is None or "transformers" in checked.skipped


def test_a_model_without_lineage_has_a_card_that_claims_none(model: Path, tiny_corpus: Any, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(model, tmp_path / "plain"))
    for name in ("lineage.json", "README.md"):
        (plain / name).unlink()
    _, rows = convert_measured(
        plain, tmp_path / "small", ConvertOptions("huggingface", quantize="int8"), tiny_corpus.path
    )
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert "How it was trained is not recorded here." in card and f"{rows[0].after:.4f}" in card
    document = check_lineage(tmp_path / "small")
    assert document["conversion"]["weights"]["sha256"] == sha256(plain / "model.safetensors")
    assert document["run"] is None and "AutoModelForCausalLM" in card
    assert verify(tmp_path / "small").problems == []
    check_leaving(stage(tmp_path / "small", tmp_path / "staged", "small", Additions()).folder)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_a_single_file_has_no_place_for_a_card(model: Path, tiny_corpus: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra llamacpp")
    with pytest.raises(UsageError, match="cannot contain a card"):
        convert_measured(model, tmp_path / "m.gguf", ConvertOptions("gguf", quantize="q8_0"), tiny_corpus.path)
    assert not list(tmp_path.iterdir())
