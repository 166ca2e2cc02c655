"""Training on a user's file of pairs: the whole path, resumed, refused; which tokens are in the loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armillary.model import Transformer, import_hf
from armillary.post.dpo import DpoOptions, prefer, render_pair
from armillary.post.formats import AnswerPair, read_pairs, write_pairs
from armillary.post.template import open_renderer
from armillary.post.tuning import Handling
from armillary.recipe import Layout, Lora, UsageError, read_spec
from armillary.train import InterruptedRunError, answer_log_probs, read_metrics

WORDS = ["one", "two", "three", "four", "five", "six"]
OPTIONS = DpoOptions(epochs=6, lr=2e-3, batch_pairs=6, beta=0.2, precision="fp32")


def pairs(numbers: range) -> list[AnswerPair]:
    """To a sum in words its result is preferred to a fluent refusal."""
    made = []
    for n in numbers:
        a, b = n % 3, n // 3 % 3
        prompt = ({"role": "user", "content": f"{WORDS[a]} + {WORDS[b]}"},)
        answers = (({"role": "assistant", "content": text},) for text in (WORDS[a + b + 1], "The sky is blue"))
        made.append(AnswerPair(prompt, *answers))
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "train.jsonl", pairs(range(18)))
    write_pairs(folder / "eval.jsonl", pairs(range(9)))
    return folder / "train.jsonl", folder / "eval.jsonl"


@pytest.fixture(scope="module")
def preferred(tiny_hf: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prefer(tiny_hf, files[0], tmp_path_factory.mktemp("dpo") / "out", OPTIONS, held_out=files[1])


def test_a_model_learns_to_prefer_and_its_reference_is_its_start(
    preferred: Any, tiny_hf: Path, files: tuple[Path, Path]
) -> None:
    rows = read_metrics(preferred.model.parent / "run").to_pylist()
    assert rows[0]["preference/margin"] == pytest.approx(0, abs=1e-5)
    assert preferred.after.accuracy.value == 1.0 and preferred.after.margin > 1
    assert preferred.run.measured["preference/accuracy"] > 0.9
    assert not (preferred.model.parent / "start.safetensors").exists()
    record = json.loads((preferred.model.parent / "record.json").read_text())
    assert record["data"]["pairs"] == 18 and record["after"]["margin"] == preferred.after.margin
    # the exported model has the margin that was recorded
    renderer = open_renderer(preferred.model)
    sides = [side for pair in read_pairs(files[1]) for side in render_pair(renderer, pair, 10_000)]
    after, before = (list(answer_log_probs(import_hf(folder), sides)) for folder in (preferred.model, tiny_hf))
    gains = [0.2 * (a - b) for a, b in zip(after, before, strict=True)]
    margins = [chosen - rejected for chosen, rejected in zip(gains[::2], gains[1::2], strict=True)]
    assert sum(margins) / len(margins) == pytest.approx(preferred.after.margin, abs=1e-3)


def test_a_model_whose_packed_pairs_have_another_loss_is_refused(
    tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Transformer.features
    seen: list[bool] = []

    def leaking(model: Any, x: Any, positions: Any = None, starts: Any = None, weights: Any = None) -> Any:
        """Attention over all of a packed sequence, from the third one on."""
        seen.append(starts is not None)
        return features(model, x, positions, None if sum(seen) > 2 else starts, weights)

    monkeypatch.setattr(Transformer, "features", leaking)
    options = replace(OPTIONS, batch_pairs=1)
    with pytest.raises(UsageError, match=r"batch 3, sequence 1, pair \d+, rejected: its loss is .* a difference of "):
        prefer(tiny_hf, files[0], tmp_path / "out", options)
    assert not (tmp_path / "out" / "run").exists()
    monkeypatch.setattr(Transformer, "features", features)
    assert prefer(tiny_hf, files[0], tmp_path / "out", options).model.is_dir()


def test_few_pairs_make_many_small_steps(tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """One step over all pairs, at the rate of the warm-up, would teach nothing."""
    assert prefer(tiny_hf, files[0], tmp_path / "out", DpoOptions()).plan.spec.steps >= 10


def test_a_finished_training_is_returned_and_other_settings_are_refused(
    preferred: Any, tiny_hf: Path, files: tuple[Path, Path]
) -> None:
    out = preferred.model.parent
    assert prefer(tiny_hf, files[0], out, OPTIONS, held_out=files[1]).to_json() == preferred.to_json()
    with pytest.raises(UsageError, match=r"another beta"):
        prefer(tiny_hf, files[0], out, replace(OPTIONS, beta=0.1), held_out=files[1])


def test_a_training_that_is_stopped_anywhere_goes_on_to_the_same_numbers(
    preferred: Any, tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    for stage in ("eval.jsonl", "train.jsonl", "train", "held-out pairs"):
        seen: list[str] = []
        handling = Handling(
            progress=lambda name, *_, seen=seen: seen.append(name), stop=lambda s=stage, seen=seen: s in seen
        )
        with pytest.raises(InterruptedRunError):
            prefer(tiny_hf, files[0], tmp_path / "out", OPTIONS, held_out=files[1], handling=handling)
    found = prefer(tiny_hf, files[0], tmp_path / "out", OPTIONS, held_out=files[1])
    expected = preferred.to_json()
    assert {**found.to_json(), "model": "", "wall_s": 0} == {**expected, "model": "", "wall_s": 0}
    name = "model.safetensors"
    assert (found.model / name).read_bytes() == (preferred.model / name).read_bytes()


def test_an_adapter_is_trained_in_the_place_of_all_weights(
    tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    options = DpoOptions(epochs=6, lr=2e-2, batch_pairs=6, loss="ipo", sft_weight=0.1, lora=Lora(rank=4, alpha=8))
    found = prefer(tiny_hf, files[0], tmp_path / "out", options, held_out=files[1])
    assert found.after is not None and found.after.margin is not None and found.after.margin > 0.05
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    assert read_spec(tmp_path / "out" / "run").adapter == options.lora


def test_the_answers_alone_are_in_the_loss_and_both_stand_behind_one_prompt(tiny_hf: Path) -> None:
    renderer = open_renderer(tiny_hf)
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    prompt = tuple({"role": role, "content": text} for role, text in turns)
    chosen, rejected = (({"role": "assistant", "content": text},) for text in ("four", "The sea is wide"))
    sides = render_pair(renderer, AnswerPair(prompt, chosen, rejected), 10_000)
    given = [side.weights.index(1.0) for side in sides]
    assert given[0] == given[1] and sides[0].tokens[: given[0]] == sides[1].tokens[: given[0]]
    texts = [renderer.text.tokenizer.decode(side.tokens[n:], False) for side, n in zip(sides, given, strict=True)]
    assert texts == ["four<|end|>", "The sea is wide<|end|>"]
    assert all(all(side.weights[n:]) for side, n in zip(sides, given, strict=True))


def test_bad_files_and_options_are_refused_with_their_place(tiny_hf: Path, tmp_path: Path) -> None:
    def refused(text: str, options: DpoOptions = DpoOptions()) -> str:
        path = tmp_path / "bad.jsonl"
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            prefer(tiny_hf, path, tmp_path / f"out{len(list(tmp_path.iterdir()))}", options)
        return str(caught.value)

    def row(chosen: str, rejected: str) -> str:
        return json.dumps({"prompt": "one + one", "chosen": chosen, "rejected": rejected}) + "\n"

    assert "bad.jsonl:1: no fields chosen and rejected" in refused('{"messages": []}\n')
    assert "bad.jsonl:2" in refused(row("two", "three") + '{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    special = refused(row("two", "three") + row("<|end|>two", "no") + row("two", "<|start|>"))
    assert "bad.jsonl:2, chosen" in special and "bad.jsonl:3, rejected" in special
    long = row("two", "one " * 15) + row("two", "three")
    assert "raise --context-length" in refused(long, DpoOptions(context_length=70))
    kept = prefer(tiny_hf, tmp_path / "bad.jsonl", tmp_path / "dropped", DpoOptions(context_length=70, too_long="drop"))
    assert (kept.plan.counts.pairs, kept.plan.counts.dropped) == (1, 1)
    for wrong in ({"beta": 0.0}, {"loss": "ipo", "label_smoothing": 0.1}, {"epochs": 0}, {"lr": float("nan")}):
        with pytest.raises(UsageError, match=list(wrong)[-1]):
            DpoOptions(**wrong)


@pytest.mark.slow
def test_ranks_of_a_layout_come_to_the_same_numbers(
    preferred: Any, tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    handling = Handling(layout=Layout(dp_shard=2))
    found = prefer(tiny_hf, files[0], tmp_path / "out", OPTIONS, held_out=files[1], handling=handling)
    assert found.run.run == preferred.run.run
    assert found.run.measured == pytest.approx(preferred.run.measured, rel=1e-3)
    assert found.after is not None
    assert found.after.margin == pytest.approx(preferred.after.margin, rel=1e-3)
