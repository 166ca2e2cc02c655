"""The losses of two models on the same windows: equal to the trainer's loss, paired, and with any tokenizer."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from armillary.evaluate.losses import calibration_tokens, compare_losses
from armillary.model import ConvertOptions, Transformer, convert, export_hf, open_model
from armillary.recipe import Family, UsageError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exported(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is drawn at random, with the tokenizer of the corpus and a context of 16."""
    model = Transformer(Family(width_per_layer=32, head_dim=16).shape(1, tiny_corpus.vocab_size))
    model.init_weights(0)
    folder = tmp_path_factory.mktemp("losses") / "model"
    end = tiny_corpus.tokenizer().id_to_token(tiny_corpus.manifest.end_of_text_id)
    export_hf(model, folder, tokenizer_file=tiny_corpus.tokenizer_file, end_token=end, context_length=16)
    return folder


def test_losses_are_those_of_the_windows_and_the_difference_is_paired(
    exported: Path, tiny_corpus: Any, tmp_path: Path
) -> None:
    convert(exported, tmp_path / "small", ConvertOptions("huggingface", quantize="int4"))
    one, other = open_model(exported), open_model(tmp_path / "small")
    seen: list[tuple[int, int]] = []
    rows = {row.domain: row for row in compare_losses(one, other, tiny_corpus, lambda *at: seen.append(at))}
    assert set(rows) == {*tiny_corpus.domains, "all"} and seen[-1][0] == seen[-1][1]
    from armillary.model import build

    tokens = torch.from_numpy(tiny_corpus.validation("sky", 16, 100).tokens)
    with torch.no_grad():
        expected = functional.cross_entropy(build(one)(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert rows["sky"].before == pytest.approx(float(expected), rel=1e-6)
    sky = rows["sky"]
    assert sky.difference.value == pytest.approx(sky.after - sky.before) and sky.tokens == sky.windows * 16
    assert sky.difference.low < sky.difference.value < sky.difference.high
    windows = {name: row.windows for name, row in rows.items() if name != "all"}
    assert rows["all"].before == pytest.approx(
        np.average([rows[n].before for n in windows], weights=[*windows.values()])
    )


def test_a_model_equals_itself(exported: Path, tiny_corpus: Any) -> None:
    for row in compare_losses(open_model(exported), open_model(exported), tiny_corpus):
        assert row.difference.value == 0 and row.p_value == 1 and row.difference.high < 1e-9


def test_another_tokenizer_reads_the_text_again(exported: Path, tiny_corpus: Any, tmp_path: Path) -> None:
    """The same tokens under other numbers: the text is encoded again, into about as many windows."""
    from tokenizers import AddedToken, Tokenizer

    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Transformer(Family(width_per_layer=32, head_dim=16).shape(1, tiny_corpus.vocab_size + 1))
    model.init_weights(0)
    tokenizer.add_special_tokens([AddedToken("<|more|>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end = tokenizer.id_to_token(tiny_corpus.manifest.end_of_text_id)
    export_hf(model, folder, tokenizer_file=tmp_path / "tokenizer.json", end_token=end, context_length=16)
    rows = {row.domain: row for row in compare_losses(open_model(folder), open_model(folder), tiny_corpus)}
    assert set(rows) == {*tiny_corpus.domains, "all"} and all(row.windows > 20 for row in rows.values())
    if importlib.util.find_spec("gguf") is not None:  # a GGUF file has its tokenizer inside
        convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
        inside = compare_losses(open_model(tmp_path / "model.gguf"), open_model(folder), tiny_corpus)
        assert {row.domain: row.before for row in inside} == pytest.approx({n: row.before for n, row in rows.items()})
    # without any tokenizer, a model with fewer tokens cannot read the corpus
    small = Transformer(Family(width_per_layer=32, head_dim=16).shape(1, 100))
    small.init_weights(0)
    convert(exported, tmp_path / "native", ConvertOptions("native"))
    (tmp_path / "native" / "tokenizer.json").unlink()
    assert compare_losses(open_model(tmp_path / "native"), open_model(exported), tiny_corpus)
    with pytest.raises(UsageError, match="no tokenizer"):
        source = open_model(tmp_path / "native")
        source.shape = small.shape
        compare_losses(source, source, tiny_corpus)


def test_calibration_reads_training_text_of_every_domain(exported: Path, tiny_corpus: Any, tmp_path: Path) -> None:
    tokens = calibration_tokens(open_model(exported), tiny_corpus)
    assert tokens.shape == (4 * len(tiny_corpus.training_domains), 16)
    first = tiny_corpus.train_tokens(tiny_corpus.training_domains[0])[:16]
    assert tokens[0].tolist() == first.tolist()
