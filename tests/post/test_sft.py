"""Fine-tuning of a user's folder on a user's file: the whole path, resumed, refused, and what leaves it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from armillary.corpus import SupervisedOrder
from armillary.model import import_hf
from armillary.post.check import check_packing
from armillary.post.formats import Conversation, write_conversations
from armillary.post.plan import SftOptions
from armillary.post.sft import check_data, fine_tune
from armillary.post.tuning import Handling
from armillary.recipe import Edge, Layout, Lora, UsageError, read_spec, walk_back
from armillary.train import InterruptedRunError, read_metrics

NUMBERS = ["one", "two", "three", "four", "five", "six"]
OPTIONS = SftOptions(epochs=12, lr=0.015, batch_tokens=192, context_length=64)


def chats(numbers: range) -> list[Conversation]:
    made = []
    for n in numbers:
        a, b = n % 3, n // 3 % 3
        turns = ({"role": "user", "content": f"{NUMBERS[a]} + {NUMBERS[b]}"},)
        made.append(Conversation((*turns, {"role": "assistant", "content": NUMBERS[a + b + 1]})))
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    write_conversations(folder / "train.jsonl", chats(range(36)), "sharegpt")
    write_conversations(folder / "eval.jsonl", chats(range(9)))
    return folder / "train.jsonl", folder / "eval.jsonl"


@pytest.fixture(scope="module")
def tuned(tiny_hf: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fine_tune(tiny_hf, files[0], tmp_path_factory.mktemp("sft") / "out", OPTIONS, held_out=files[1])


def test_a_model_learns_its_data_and_to_stop(tuned: Any, tiny_hf: Path, files: tuple[Path, Path]) -> None:
    assert tuned.before > 3 and tuned.after < 0.05
    from armillary.generate import BackendOptions, Message, Request, Sampling, open_backend

    backend = open_backend(str(tuned.model), BackendOptions(), None)
    requests = [Request((Message("user", "two + three"),), Sampling(max_new_tokens=20))]
    (completion,) = backend.complete(requests)
    assert completion.choices[0].text == "five"
    record = json.loads((tuned.model.parent / "record.json").read_text())
    assert record["data"]["conversations"] == 36 and record["loss_after"] == tuned.after
    data = hashlib.sha256(files[0].read_bytes()).hexdigest()
    (made, *_), edges = record["edges"][0], [Edge(*edge) for edge in record["edges"]]
    assert made.startswith("model:") and f"data:{data}" in walk_back(edges, made) and len(edges) == 3
    assert not (tuned.model.parent / "start.safetensors").exists()


def test_the_loss_on_held_out_conversations_is_taken_after_each_pass(tuned: Any) -> None:
    spec, sequences = tuned.plan.spec, tuned.plan.sequences
    rows = read_metrics(tuned.model.parent / "run", ["step", "held_out/loss"]).to_pylist()
    taken = {row["step"]: row["held_out/loss"] for row in rows if row["held_out/loss"] is not None}
    every = -(-sequences // spec.batch_sequences)
    assert list(taken) == list(range(every, spec.steps, every)) and len(taken) > 10
    assert tuned.before > taken[every] > max(list(taken.values())[-3:])


def test_transformers_loads_the_model_and_stops_where_a_turn_ends(tuned: Any, tiny_hf: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    model = transformers.AutoModelForCausalLM.from_pretrained(tuned.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned.model)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "one + two"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(written) == "three<|end|>"
    source = transformers.AutoTokenizer.from_pretrained(tiny_hf)
    assert tokenizer.chat_template == source.chat_template and len(tokenizer) == len(source)


def test_a_finished_fine_tuning_is_returned_and_other_settings_are_refused(
    tuned: Any, tiny_hf: Path, files: tuple[Path, Path]
) -> None:
    out = tuned.model.parent
    before = (out / "record.json").read_bytes()
    again = fine_tune(tiny_hf, files[0], out, OPTIONS, held_out=files[1])
    assert again.to_json() == tuned.to_json() and (out / "record.json").read_bytes() == before
    with pytest.raises(UsageError, match=r"another lr and held_out \(0\.015, now 0\.02\)"):
        fine_tune(tiny_hf, files[0], out, SftOptions(epochs=12, lr=0.02, batch_tokens=192, context_length=64))
    (out.parent / "other").mkdir(exist_ok=True)
    (out.parent / "other" / "thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"contains .thesis\.txt. but no fine-tuning"):
        fine_tune(tiny_hf, files[0], out.parent / "other", OPTIONS)


def test_a_model_that_was_removed_is_written_again(
    tuned: Any, tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(tuned.model.parent, out)
    shutil.rmtree(out / "model")
    fine_tune(tiny_hf, files[0], out, OPTIONS, held_out=files[1])
    name = "model.safetensors"
    assert (out / "model" / name).read_bytes() == (tuned.model / name).read_bytes()


def test_a_fine_tuning_that_is_stopped_anywhere_goes_on_to_the_same_numbers(
    tuned: Any, tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Stopped while it reads, at the loss before, and in the run."""
    stages: list[str] = []
    for stage in ("eval.jsonl", "train.jsonl", "loss before", "train", "loss after"):

        def progress(name: str, done: float, total: float, note: str) -> None:
            stages.append(name)

        stop = lambda stage=stage: stages[-1:] == [stage]  # noqa: E731
        with pytest.raises(InterruptedRunError):
            fine_tune(
                tiny_hf, files[0], tmp_path / "out", OPTIONS, held_out=files[1],
                handling=Handling(progress=progress, stop=stop),
            )  # fmt: skip
    found = fine_tune(tiny_hf, files[0], tmp_path / "out", OPTIONS, held_out=files[1])
    assert found.to_json() | {"model": "", "wall_s": 0} == tuned.to_json() | {"model": "", "wall_s": 0}
    name = "model.safetensors"
    assert (found.model / name).read_bytes() == (tuned.model / name).read_bytes()


def test_a_damaged_set_of_examples_is_made_again(tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    out, options = tmp_path / "out", replace(OPTIONS, epochs=2)
    stages: list[str] = []

    def progress(name: str, done: float, total: float, note: str) -> None:
        stages.append(name)

    with pytest.raises(InterruptedRunError):
        fine_tune(
            tiny_hf, files[0], out, options,
            handling=Handling(progress=progress, stop=lambda: stages[-1:] == ["train"]),
        )  # fmt: skip
    (tokens,) = out.glob("corpus/*/examples/*/tokens.bin")
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-4])
    found = fine_tune(tiny_hf, files[0], out, options)
    assert found.model.is_dir() and tokens.read_bytes() == whole


def test_check_shows_what_is_trained_and_writes_nothing(tiny_hf: Path, files: tuple[Path, Path]) -> None:
    before = sorted(files[0].parent.iterdir())
    found = check_data(tiny_hf, files[0], OPTIONS, sample=2)
    assert [text for text, trained in found.pieces if trained] == ["three<|end|>"]
    assert found.compared and found.counts.conversations == 36 and sorted(files[0].parent.iterdir()) == before
    with pytest.raises(UsageError, match="has 36 conversations, so there is no number 37"):
        check_data(tiny_hf, files[0], OPTIONS, sample=37)


def test_a_model_whose_packed_loss_is_another_is_refused_in_any_of_the_first_batches(tuned: Any, tiny_hf: Path) -> None:
    from armillary.corpus import Corpus

    spec = read_spec(tuned.model.parent / "run")
    order = SupervisedOrder.of(spec, Corpus.open(tuned.model.parent / "corpus" / spec.corpus))
    model = import_hf(tiny_hf)
    compared = check_packing(model, order)
    assert compared == sum(len(row) for step in range(3) for row in order.samples(step))
    features, calls = model.features, []

    def leaking(tokens: Any, positions: Any, starts: Any, weights: Any) -> Any:
        """Attention over all of a packed sequence, from the second batch on."""
        calls.append(starts is not None)
        crossed = sum(calls) > spec.batch_sequences
        return features(tokens, positions, None if crossed else starts, weights)

    model.features = leaking  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="does not isolate packed samples") as caught:
        check_packing(model, order)
    said = str(caught.value)
    second = order.samples(1)[0][1]  # the first conversation of a sequence sees nothing before it
    assert said.startswith(f"batch 2, sequence 1, {second}: its loss is ") and "a difference of " in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0.0}, "epochs must be more than 0"),
        ({"lr": float("nan")}, "lr must be more than 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SftOptions(**options)


def test_an_adapter_is_trained_merged_and_saved_as_peft_has_it(
    tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra dev")
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    options = replace(OPTIONS, epochs=6, lr=0.05, lora=Lora(rank=4, alpha=8.0, targets=("q", "v", "out", "up")))
    stages: list[str] = []

    def progress(name: str, done: float, total: float, note: str) -> None:
        stages.append(name)

    stopped = Handling(progress=progress, stop=lambda: stages.count("train") == 7)
    with pytest.raises(InterruptedRunError):
        fine_tune(tiny_hf, files[0], tmp_path / "out", options, held_out=files[1], handling=stopped)
    found = fine_tune(tiny_hf, files[0], tmp_path / "out", options, held_out=files[1])
    whole = fine_tune(tiny_hf, files[0], tmp_path / "whole", options, held_out=files[1])
    assert found.after == whole.after and found.after < found.before - 1

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_hf)
    adapted = peft.PeftModel.from_pretrained(base, str(found.model.parent / "adapter"))
    merged = transformers.AutoModelForCausalLM.from_pretrained(found.model)
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.allclose(adapted(tokens).logits, merged(tokens).logits, atol=1e-4)
    before, after = import_hf(tiny_hf).state_dict(), import_hf(found.model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("attention.q", "attention.v", "attention.out", "feed_forward.up")
    assert changed == {f"layers.{layer}.{part}.weight" for layer in range(2) for part in parts}


@pytest.mark.slow
def test_ranks_fine_tune_to_the_same_numbers(tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=4, batch_tokens=256, precision="fp32")
    alone = fine_tune(tiny_hf, files[0], tmp_path / "alone", options, held_out=files[1])
    for name, layout in {"data": Layout(dp_shard=2), "pipeline": Layout(pp=2)}.items():
        ranks = fine_tune(
            tiny_hf, files[0], tmp_path / name, options, held_out=files[1], handling=Handling(layout=layout)
        )
        assert ranks.run.run == alone.run.run and ranks.after == pytest.approx(alone.after, abs=1e-4)


@pytest.mark.slow
def test_ranks_train_an_adapter_to_the_same_model(tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=4, batch_tokens=256, lr=0.005, precision="fp32", lora=Lora(rank=4))
    alone = fine_tune(tiny_hf, files[0], tmp_path / "alone", options, held_out=files[1])
    for name, layout in {"data": Layout(dp_shard=2), "pipeline": Layout(pp=2)}.items():
        ranks = fine_tune(
            tiny_hf, files[0], tmp_path / name, options, held_out=files[1], handling=Handling(layout=layout)
        )
        assert ranks.run.run == alone.run.run and ranks.after == pytest.approx(alone.after, abs=1e-4)
        for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
            found, expected = (load_file(tmp_path / folder / file) for folder in (name, "alone"))
            assert all(torch.allclose(found[key], expected[key], atol=1e-4) for key in expected)


def test_a_layout_that_does_not_fit_is_refused(tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"vocab_size \(\d+\) must be a multiple of tp \(2\)"):
        fine_tune(tiny_hf, files[0], tmp_path / "tp", OPTIONS, handling=Handling(layout=Layout(tp=2)))


def test_what_cannot_be_trained_leaves_a_folder_that_takes_the_repaired_file(tiny_hf: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    write_conversations(data, [*chats(range(9)), Conversation(({"role": "user", "content": "only asked"},))])
    options = replace(OPTIONS, epochs=1)
    with pytest.raises(UsageError, match=r"data.jsonl:10: has no assistant turn"):
        fine_tune(tiny_hf, data, tmp_path / "out", options)
    assert not list((tmp_path / "out").glob("corpus/*/examples/*"))
    write_conversations(data, chats(range(9)))
    assert fine_tune(tiny_hf, data, tmp_path / "out", options).plan.counts.conversations == 9


def test_a_model_that_is_stored_in_half_precision_stays_so(
    tiny_hf: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    half = tmp_path / "half"
    shutil.copytree(tiny_hf, half)
    transformers.AutoModelForCausalLM.from_pretrained(tiny_hf, dtype=torch.bfloat16).save_pretrained(half)
    found = fine_tune(half, files[0], tmp_path / "out", SftOptions(epochs=1, context_length=64))
    assert transformers.AutoModelForCausalLM.from_pretrained(found.model).dtype == torch.bfloat16
