"""What must not leave the house is found, and what only looks like it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from publications import LINEAGE, published
from safetensors.torch import load_file, save_file

from armillary.evaluate import Examination, Result, write_examination
from armillary.publish import Additions, check_lineage, check_sums
from armillary.publish.leaving import check_leaving
from armillary.publish.secrets import paths_in, secrets_in
from armillary.publish.stage import Staged, stage
from armillary.publish.sums import SUMS, sums
from armillary.recipe import ArmillaryError, DamagedFileError, UsageError

SECRETS = {
    "hf_" + "a1B2" * 9: "Hugging Face",
    "sk-" + "proj-" + "x9" * 16: "API key",
    "ghp_" + "Z9" * 18: "GitHub",
    "AKIA" + "ABCDEFGH12345678": "AWS",
    "-----BEGIN RSA PRIVATE KEY-----": "private key",
    "-----BEGIN PRIVATE KEY-----": "private key",
    "https://me:pass-word1@gitee.com/me/x.git": "password",
    "postgresql://u:p4ss/word@db/x": "password",
    "ms-01234567-89ab-cdef-0123-456789abcdef": "ModelScope",
}
PATHS = ["/home/ada/corpus", "/mnt/data1/x.jsonl", "/data2/raw/a", "C:\\Users\\ada", "file:///x/y", "~/models/m"]
HARMLESS = [
    "either/or, and/or; 3/4; https://example.org/home/ada/x; a/home/b",
    "<think>/</think> </tool_call> {% if x %}/{% endif %} s3://bucket/data/x",
    "hf_hub, sk-learn, AKIA, ghp_, -----BEGIN CERTIFICATE-----, user:name@example.org, ***:***@host",
    "the ratio ~1/2, `./data/x`, ../data/y, `~` and src/data/z",
]


@pytest.fixture(scope="module")
def model(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "model", tokenizer_file)


def staged(model: Path, folder: Path, **lineage: Any) -> Staged:
    return stage(model, folder, "sphere-1", Additions(**lineage))


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_found_and_not_repeated(secret: str) -> None:
    (found,) = {*secrets_in(f"a\nkey: {secret} b")}
    assert SECRETS[secret] in found and found.startswith("line 2: ") and secret not in found


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_machines_are_found(path: str) -> None:
    assert paths_in(f"a\nfrom {path} on")[0].startswith("line 2: ")
    assert paths_in(json.dumps({"source": path}))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert paths_in(text) == [] and secrets_in(text) == []


def test_every_text_file_and_the_metadata_are_searched(model: Path, tmp_path: Path) -> None:
    assert check_leaving(staged(model, tmp_path / "out").folder, load=False).files == 7
    for name, put in (
        ("generation_config.json", {"from": "/home/ada/x"}),
        ("tokenizer_config.json", {"name_or_path": "/mnt/models/x"}),
        ("tokenizer_config.json", {"token": "hf_" + "a1B2" * 9}),
    ):
        folder = staged(model, tmp_path / "out").folder
        damaged(folder, name, json.dumps({**json.loads((folder / name).read_text()), **put}).encode())
        with pytest.raises(UsageError, match=name) as caught:
            check_leaving(folder, load=False)
        assert "a1B2" not in str(caught.value)
    folder = staged(model, tmp_path / "out").folder
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()  # a hard link to the model's own
    save_file(tensors, path, metadata={"format": "pt", "from": "/home/ada/x"})
    damaged(folder, path.name, path.read_bytes())
    with pytest.raises(UsageError, match=r"model\.safetensors: metadata"):
        check_leaving(folder, load=False)
    folder = staged(model, tmp_path / "out").folder
    damaged(folder, "README.md", b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"README\.md: is neither text"):
        check_leaving(folder, load=False)


def damaged(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and every hash of it, as a publication that was made so would have them."""
    from armillary.publish.ledger import sha256
    from armillary.recipe import write_sealed

    (folder / name).unlink()
    (folder / name).write_bytes(content)
    document = json.loads((folder / "lineage.json").read_text())
    document.pop("sha256")
    document["files"][name] = sha256(folder / name)
    write_sealed(folder / "lineage.json", document)
    digests = {path.name: sha256(path) for path in folder.iterdir() if path.name != SUMS}
    (folder / SUMS).write_text(sums(digests))


def test_pieces_of_a_vocabulary_may_look_like_paths(model: Path, tmp_path: Path) -> None:
    folder = staged(model, tmp_path / "out").folder
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"/home/ada/x": 299, "password": 12333, "api_key": 12334}
    damaged(folder, "tokenizer.json", json.dumps(tokenizer).encode())
    check_leaving(folder, load=False)
    tokenizer["model"]["from"] = "/home/ada/x"
    damaged(folder, "tokenizer.json", json.dumps(tokenizer).encode())
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        check_leaving(folder, load=False)


@pytest.mark.slow
def test_transformers_loads_it_and_computes_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1B2" * 9)
    folder = staged(model, tmp_path / "out").folder
    found = check_leaving(folder)
    assert found.difference is not None and found.difference < 1e-5 and found.skipped is None
    config = json.loads((folder / "config.json").read_text())
    damaged(folder, "config.json", json.dumps({**config, "model_type": "nonsense"}).encode())
    with pytest.raises(ArmillaryError, match=r"config\.json|cannot load it"):
        check_leaving(folder)
    folder = staged(model, tmp_path / "out").folder
    monkeypatch.setattr("armillary.publish.leaving.logits_of", lambda built, tokens: built(tokens).detach() + 1)
    with pytest.raises(ArmillaryError, match="computes different logits"):
        check_leaving(folder)


def test_without_transformers_that_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = check_leaving(staged(model, tmp_path / "out").folder)
    assert found.difference is None and found.skipped is not None and "transformers is not installed" in found.skipped


def test_checksums_are_those_of_sha256sum(model: Path, tmp_path: Path) -> None:
    import subprocess

    folder = staged(model, tmp_path / "out").folder
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", SUMS], cwd=folder, check=True)
    assert len(check_sums(folder)) == 7 and check_lineage(folder)["run"] == LINEAGE["run"]
    (folder / "config.json").unlink()
    with pytest.raises(DamagedFileError, match=r"config\.json: is missing"):
        check_sums(folder)
    (folder / SUMS).write_text("nonsense\n")
    with pytest.raises(DamagedFileError, match="not checksums"):
        check_sums(folder)
    assert check_sums(model) == {}


def test_the_same_additions_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    additions: dict[str, Any] = {"licence": "mit", "languages": ("zh",)}
    one, other = (staged(model, tmp_path / name, **additions) for name in ("a", "b"))
    assert one.digests == other.digests
    assert check_lineage(one.folder)["publication"] == {"licence": "mit", "languages": ["zh"]}
    assert (one.folder / "model.safetensors").stat().st_ino == (model / "model.safetensors").stat().st_ino


def test_an_examination_is_taken_only_of_this_model(model: Path, tmp_path: Path) -> None:
    result = Result("cloze", "cloze", "acc", 0.5, 0.4, 0.6, 90, 0.0, None, "s")
    for name, identity in (("own", {"model": "m", "run": LINEAGE["run"]}), ("other", {"model": "m", "sha256": "0"})):
        write_examination(tmp_path / name, Examination((result,), {}, model=identity))
    folder = staged(model, tmp_path / "out", results=(tmp_path / "own",)).folder
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| cloze |  | acc | 90 | 0.5000 | 0.4000 to 0.6000 |" in card
    with pytest.raises(UsageError, match="differ from this model's"):
        staged(model, tmp_path / "out", results=(tmp_path / "other",))
    # what the engines hash of a folder is known
    from armillary.generate import BackendOptions, open_backend

    backend = open_backend(str(model), BackendOptions(threads=1))
    write_examination(tmp_path / "engine", Examination((result,), {}, model=dict(backend.identity)))
    backend.close()
    staged(model, tmp_path / "out", results=(tmp_path / "engine",))
    torch.set_num_threads(1)
    shutil.rmtree(tmp_path / "out")
