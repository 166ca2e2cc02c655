"""Runs of adapters over many ranks: the numbers, the adapter and the merged weights of a run on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks import train
from safetensors.torch import load_file

from armillary.model import Transformer, save_weights
from armillary.recipe import WEIGHTS, Layout, Lora, ModelShape, RunSpec
from armillary.train import ADAPTER, read_metrics, start_from, train_run

# What sums in another order come to in these runs, in nats and in the size of a weight.
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def spec(make_spec: Any, tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    shape = ModelShape(
        n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=tiny_corpus.vocab_size
    )
    model = Transformer(shape)
    model.init_weights(3)
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    save_weights(model, path)
    fields = dict(make_spec(model=shape, batch_sequences=8, steps=9))
    return RunSpec(**{**fields, "start": start_from(path), "adapter": Lora(rank=4, alpha=8.0)})


@pytest.fixture(scope="module")
def alone(spec: RunSpec, tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("alone") / "run"
    train_run(spec, tiny_corpus, folder)
    return folder


WAYS = {
    "dp2, tp2, pp2": (Layout(dp_shard=2), Layout(tp=2), Layout(pp=2)),
    "pp2, hsdp, 1": (Layout(pp=2), Layout(dp_replicate=2), Layout()),
    "tp2 dp2, cp2, dp2": (Layout(tp=2, dp_shard=2), Layout(cp=2), Layout(dp_shard=2)),
    "1, pp2 tp2": (Layout(), Layout(pp=2, tp=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_is_the_same_under_every_layout_and_when_resumed(
    way: str, spec: RunSpec, alone: Path, tiny_corpus: Any, tmp_path: Path, on_ranks: Any
) -> None:
    """Stopped and resumed under other layouts, each of which reads the checkpoint of the one before."""
    folder, layouts = tmp_path / "run", WAYS[way]
    for number, layout in enumerate(layouts, 1):
        stop_after = 3 if number < len(layouts) else None
        on_ranks(layout.ranks, train, spec, tiny_corpus.path, folder, layout, stop_after)
    losses = [read_metrics(path, ["loss"])["loss"].to_pylist() for path in (folder, alone)]
    assert len(losses[0]) == spec.steps and losses[0] == pytest.approx(losses[1], abs=TOLERANCE)
    for name in (WEIGHTS, ADAPTER):
        found, expected = load_file(folder / name), load_file(alone / name)
        assert found.keys() == expected.keys() and found
        for key, value in expected.items():
            assert float((found[key] - value).abs().max()) < TOLERANCE, (name, key)
    assert spec.start is not None
    before, merged = load_file(spec.start.weights), load_file(folder / WEIGHTS)
    changed = {name for name in before if not before[name].equal(merged[name])}
    assert changed == {name for name in before if ".attention." in name or ".feed_forward." in name}
