"""A published folder: loads in transformers, walks back to its run, tells people what it is, and appears whole."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import armillary
from armillary.model import Transformer, import_hf
from armillary.recipe import ArmillaryError, Family, UsageError
from armillary.release import check_lineage, publish

torch.set_num_threads(1)

SHAPE = Family(width_per_layer=8, head_dim=8).shape(1, 300)
LINEAGE: dict[str, Any] = {
    "run": "0123456789abcdef",
    "spec": {"format": 1, "seed": 1},
    "corpus": {
        "hash": "feedc0de",
        "domains": {
            "news": {"source": "demo:news", "licence": "MIT", "train_tokens": 1234567},
            "novel | 小说": {"source": "/data/novel", "licence": None, "train_tokens": 0},
        },
    },
    "argued_by": {"mixture": ["aa", "bb"], "ladder": ["cc"], "anneal": []},
    "prediction": {"id": "p1", "recorded_at": "2030-01-01T00:00:00Z"},
    "verdict": [
        {"domain": "news", "predicted": 2.5, "low": 2.4, "high": 2.6, "measured": 2.45, "inside": True},
        {"domain": "novel | 小说", "predicted": 4.0, "low": 3.9, "high": 4.1, "measured": 4.3, "inside": False},
        {"domain": "target", "predicted": 3.0, "low": 2.9, "high": 3.1, "measured": 3.05, "inside": True},
    ],
    "losses": {"news": 2.45, "novel | 小说": 4.3, "code": 1.5},
}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<|end|>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def built(seed: int = 0) -> Transformer:
    model = Transformer(SHAPE)
    model.init_weights(seed)
    return model


def published(folder: Path, tokenizer_file: Path, seed: int = 0, **changed: Any) -> Path:
    lineage = {**copy.deepcopy(LINEAGE), **changed}
    publish(built(seed), folder, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=32, lineage=lineage)
    return folder


def test_transformers_loads_what_was_published(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    folder = published(tmp_path / "model", tokenizer_file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("the heavens", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, built()(tokens), rtol=0, atol=1e-5)


def test_the_lineage_walks_back_from_the_weights(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    lineage = check_lineage(folder)
    assert {key: lineage[key] for key in LINEAGE} == LINEAGE
    recorded = lineage["weights"]
    told = subprocess.run(
        ["sha256sum", folder / recorded["file"]], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    assert recorded["sha256"] == told
    assert lineage["code"]["armillary"] == armillary.__version__


def test_the_commit_is_that_of_the_checkout_and_none_elsewhere(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a repository of its own, in which the package is first not tracked, then tracked, then changed
    package = tmp_path / "checkout" / "armillary"
    package.mkdir(parents=True)
    source = package / "__init__.py"
    source.write_text("")
    monkeypatch.setattr(armillary, "__file__", str(source))

    def git(*words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(package), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit() -> Any:
        return check_lineage(published(tmp_path / "model", tokenizer_file))["code"]["commit"]

    assert commit() is None
    git("init", "-q", "..")
    git("commit", "-q", "--allow-empty", "-m", "someone else's")
    assert commit() is None
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    assert commit() == git("rev-parse", "HEAD")
    source.write_text("changed")
    assert commit() == git("rev-parse", "HEAD") + "+changes"


def test_changed_weights_are_told_from_those_of_the_lineage(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArmillaryError, match="SHA-256") as caught:
        check_lineage(folder)
    assert caught.value.exit_code == 1
    weights.unlink()
    with pytest.raises(ArmillaryError, match=r"model\.safetensors"):
        check_lineage(folder)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"format": 1, "weights": {}}', '{"format": "x"}'])
def test_a_folder_without_lineage_is_a_wrong_folder(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "lineage.json").write_text(content)
    with pytest.raises(UsageError, match=r"lineage\.json"):
        check_lineage(tmp_path)


def test_a_lineage_of_a_newer_format_asks_for_an_update(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    document = json.loads((folder / "lineage.json").read_text())
    (folder / "lineage.json").write_text(json.dumps({**document, "format": 2}))
    with pytest.raises(UsageError, match="update armillary"):
        check_lineage(folder)


def test_the_card_tells_text_licences_and_verdict(tmp_path: Path, tokenizer_file: Path) -> None:
    card = (published(tmp_path / "sphere-1", tokenizer_file) / "README.md").read_text(encoding="utf-8")
    assert "\n# sphere-1\n" in card
    assert f"{SHAPE.parameters:,} parameters" in card
    assert "| news | 1,234,567 | MIT | demo:news |" in card
    assert "| novel \\| 小说 | 0 | not stated | /data/novel |" in card
    assert "| news | 2.4500 | 2.5000 | 2.4000 to 2.6000 | inside |" in card
    assert "| novel \\| 小说 | 4.3000 | 4.0000 | 3.9000 to 4.1000 | outside |" in card
    assert "| code | 1.5000 |" in card
    assert "| target | 3.0500 | 3.0000 | 2.9000 to 3.1000 | inside |" in card
    assert "2 of 3 lie inside" in card
    assert "2 runs of the mixture study" in card and "anneal" not in card


def test_the_loading_code_of_the_card_runs(tmp_path: Path, tokenizer_file: Path) -> None:
    pytest.importorskip("transformers")
    folder = published(tmp_path / "model", tokenizer_file)
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("The ")


def test_a_model_without_prediction_has_a_card_that_claims_none(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file, prediction=None, verdict=None, argued_by={})
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "predict" not in card
    assert "| news | 2.4500 |" in card
    assert "argued" not in card
    assert check_lineage(folder)["verdict"] is None


@pytest.mark.parametrize("named", ["verdict", "extra"])
def test_a_wrong_lineage_is_refused_before_anything_is_written(
    named: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    with pytest.raises(UsageError, match=named):
        publish(
            built(),
            tmp_path / "model",
            tokenizer_file=tokenizer_file,
            end_token="<|end|>",
            context_length=32,
            lineage=LINEAGE | {"extra": 1} if named == "extra" else {k: LINEAGE[k] for k in LINEAGE if k != named},
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("older", [True, False])
def test_a_publish_killed_anywhere_is_whole_or_not_there(older: bool, tmp_path: Path, tokenizer_file: Path) -> None:
    folder, kept = tmp_path / "model", published(tmp_path / "kept", tokenizer_file, seed=1)
    seen = set()
    for point in range(1, 300):
        shutil.rmtree(folder, ignore_errors=True)
        if older:
            shutil.copytree(kept, folder)
        finished = _publish_killed_at(point, folder, tokenizer_file)
        if folder.exists():
            new = _is(folder, 2)
            assert new or (older and _is(folder, 1))
            assert check_lineage(folder)["run"] == ("new" if new else LINEAGE["run"])
            assert (folder / "README.md").exists()
            seen.add("new" if new else "old")
        else:
            seen.add("none")
        if finished:
            break
    assert finished and seen == {"old" if older else "none", "new"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["kept", "model"]


def _is(folder: Path, seed: int) -> bool:
    return all(torch.equal(p, q) for p, q in zip(import_hf(folder).parameters(), built(seed).parameters(), strict=True))


def _publish_killed_at(point: int, folder: Path, tokenizer_file: Path) -> bool:
    """Publish in a child that dies right before its ``point``-th touch of the file system; whether it finished."""
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
            published(folder, tokenizer_file, seed=2, run="new")
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    return os.waitstatus_to_exitcode(status) == 0
