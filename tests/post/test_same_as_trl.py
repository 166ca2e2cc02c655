"""The loss of packed conversations and all gradients are those of TRL's SFTTrainer on the same batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from armillary.corpus import Example, SupervisedOrder, write_examples, write_vocabulary
from armillary.model import import_hf, set_batch_weight
from armillary.model.weights.huggingface import names_there
from armillary.post.formats import Conversation
from armillary.post.template import open_renderer

trl = pytest.importorskip("trl", reason="needs the extra dev")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

TEXTS = [
    ("How wide is the sea?", "The sea is wide.", "And the sky?", "Blue, and wide."),
    ("1 + 1?", "2"),
    ("天是什么？", "天是蓝的，海是宽的。"),
    ("Add two numbers.", "def add(x, y):\n    return x + y"),
    ("Why?", "浑仪，古代观测天体位置的仪器。", "So?", "So.", "Then?", "One, two, three and four: 12 * 3 = 36."),
]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: Any, tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, or one with QK-norm and a tied output in its place."""
    if request.param == "llama":
        return tiny_hf
    made: Path = tmp_path_factory.mktemp("qwen") / "hf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_hf)
    torch.manual_seed(3)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
        tie_word_embeddings=True,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def test_the_packed_loss_and_its_gradients_are_those_of_trl(folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    renderer = open_renderer(folder)
    roles = ("user", "assistant")
    chats = [
        Conversation(tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))) for texts in TEXTS
    ]
    rendered = [renderer.render(chat) for chat in chats]

    corpus = write_vocabulary(tmp_path, (folder / "tokenizer.json").read_text(encoding="utf-8"), "<|end|>")
    written = write_examples(corpus, "chats", [Example(r.tokens, [float(t) for t in r.trained]) for r in rendered])
    sizes = {"seed": 0, "context_length": 127, "pad": renderer.end}
    rows = SupervisedOrder(written, batch_sequences=1, **sizes).sequences
    batch = SupervisedOrder(written, batch_sequences=rows, **sizes).batch(0).map(torch.from_numpy)
    ours = import_hf(folder)
    set_batch_weight(ours, batch.weight)
    loss = ours.loss(batch.tokens, 0.0, batch.weights, batch.documents)[0] / batch.weight
    loss.backward()

    names = {"input_ids": "tokens", "assistant_masks": "trained"}
    data = Dataset.from_list([{name: getattr(r, field) for name, field in names.items()} for r in rendered])
    config = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        packing=True, max_length=128, per_device_train_batch_size=rows, shuffle_dataset=False,
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    trainer = trl.SFTTrainer(
        model=theirs, args=config, train_dataset=data,
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    assert int((inputs["labels"] != -100).sum()) == batch.weight == sum(sum(r.trained) for r in rendered)
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)

    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    found = {name: p.grad for name, p in ours.named_parameters()}
    names = names_there(ours.shape)
    assert set(names) == set(found) and set(names.values()) == set(wanted)
    for name, gradient in found.items():
        expected_gradient = wanted[names[name]]
        assert torch.allclose(gradient, expected_gradient, atol=1e-5, rtol=1e-5), name
        assert float(expected_gradient.abs().max()) > 1e-4, name  # equal zeros would show nothing
