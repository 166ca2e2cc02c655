"""A published folder: loads in transformers, walks back to its run, tells people what it is, and appears whole.

What stands in its place is replaced only where this program wrote it there and it was not touched since.
"""

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
import yaml
from publications import LINEAGE, SHAPE, SPEC, built, published
from tokenizers import Tokenizer, models, pre_tokenizers

import armillary
from armillary.model import import_hf
from armillary.publish import (
    check_lineage,
    check_publishable,
    check_record,
    is_publication,
    is_published,
    origins,
    publish,
)
from armillary.publish.card import model_card
from armillary.publish.ledger import ledger_file
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    Supervised,
    UsageError,
    write_sealed,
)

torch.set_num_threads(1)


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
    # a separate repository, in which the package is first not tracked, then tracked, then changed
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


def test_every_damaged_file_of_a_publication_is_named(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    (folder / "model.safetensors").write_bytes(b"other")
    (folder / "config.json").unlink()
    (folder / "README.md").write_text("edited")
    with pytest.raises(DamagedFileError) as caught:
        check_lineage(folder)
    named = [Path(line.partition(": ")[0]).name for line in str(caught.value).splitlines()]
    assert sorted(named) == ["README.md", "config.json", "model.safetensors"]


def test_a_publication_is_known_without_its_lineage(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    (folder / "lineage.json").unlink()
    assert is_publication(folder)
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))  # without the record beside it: by its card
    assert is_publication(elsewhere)
    (elsewhere / "README.md").write_text("# A model of another program")
    assert not is_publication(elsewhere) and not is_publication(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "weights": {}}', '{"format": "x"}', "\xff"])
def test_a_lineage_that_cannot_be_read_is_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text(content, encoding="latin-1")
    with pytest.raises(DamagedFileError, match=r"lineage\.json"):
        check_lineage(tmp_path)


def test_a_folder_without_lineage_is_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lineage\.json"):
        check_lineage(tmp_path)


def test_a_lineage_of_a_newer_format_is_not_for_this_program(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    document = json.loads((folder / "lineage.json").read_text())
    (folder / "lineage.json").write_text(json.dumps({**document, "format": 3}))
    with pytest.raises(ForeignFileError, match="format 3"):
        check_lineage(folder)


def test_a_lineage_of_format_1_is_still_read(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    before_records(folder)
    assert check_lineage(folder)["run"] == LINEAGE["run"]
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DamagedFileError, match="SHA-256"):
        check_lineage(folder)


def test_the_card_tells_text_licences_and_verdict(tmp_path: Path, tokenizer_file: Path) -> None:
    card = (published(tmp_path / "sphere-1", tokenizer_file) / "README.md").read_text(encoding="utf-8")
    assert "\n# sphere-1\n" in card
    assert f"{SHAPE.parameters:,} parameters" in card
    assert "trained on 12,800 tokens" in card  # 100 steps of 4 sequences of 32, not what the corpus holds
    assert "| domain | share in steps 1 to 80 | share in steps 81 to 100 |" in card
    drawn = {name: 10_240 * a + 2_560 * b for name, a, b in (("news", 0.75, 0.5), ("code", 0.25, 0.5))}
    assert f"| news | 75.0% | 50.0% | {drawn['news']:,.0f} | 0.01 | MIT | demo:news |" in card
    assert f"| code | 25.0% | 50.0% | {drawn['code']:,.0f} | 7.68 | Apache-2.0 | src |" in card
    assert "Only examined" in card and "| novel \\| 小说 | 1,000 | not stated | novel |" in card
    assert "| news | 2.4500 | 2.5000 | 2.4000 to 2.6000 | inside |" in card
    assert "| novel \\| 小说 | 4.3000 | 4.0000 | 3.9000 to 4.1000 | outside |" in card
    assert "| code | 1.5000 |" in card
    assert "| target | 3.0500 | 3.0000 | 2.9000 to 3.1000 | inside |" in card
    assert "2 of 3 predictions" in card
    assert "2 runs of the mixture study, 1 run of the ladder study" in card and "anneal" not in card


def test_the_card_says_nothing_that_the_lineage_does_not(tmp_path: Path, tokenizer_file: Path) -> None:
    """No sentence on size or purpose; each limit follows from what is recorded, in both languages."""
    lineage = {**LINEAGE, "weights": {"sha256": "0" * 64}}
    card = model_card("m", SHAPE, 32, lineage)
    for claim in ("very small", "made to show", "repeats itself", "chat or to follow"):
        assert claim not in card
    assert "- The licence of novel | 小说 is not stated." in card and "- novel | 小说 的许可证未说明。" in card
    assert "- There is no record of an examination on public tasks." in card and "- 没有公开评测集的评测记录。" in card
    stated = copy.deepcopy(lineage)
    stated["corpus"]["domains"]["novel | 小说"]["licence"] = "CC0"
    rows = [{"task": "t", "subset": "t", "metric": "acc", "value": 0.5, "low": 0.4, "high": 0.6, "n": 90}]
    stated["publication"] = {"evaluation": rows, "licence": "my-own 1.0", "languages": ["zh"]}
    card = model_card("m", SHAPE, 32, stated)
    assert "is not stated" not in card and "public tasks" not in card
    assert "| t |  | acc | 90 | 0.5000 | 0.4000 to 0.6000 |" in card
    assert "| t |  | acc | 90 | 0.5000 | 0.4000 至 0.6000 |" in card
    assert card.index("## 中文说明") > card.index("## Limits")


def test_the_front_matter_has_the_keys_of_every_hub() -> None:
    about = {"licence": "Apache-2.0", "languages": ["en", "zh"]}
    lineage = {**LINEAGE, "weights": {"sha256": "0" * 64}, "publication": about}
    front = yaml.safe_load(model_card("m: 1", SHAPE, 32, lineage).split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["language"] == ["en", "zh"]
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    assert front["frameworks"] == ["PyTorch"] and front["tasks"] == ["text-generation"] and front["domain"] == ["nlp"]
    (index,) = front["model-index"]
    assert index["name"] == "m: 1" and len(index["results"]) == 3
    own = yaml.safe_load(
        model_card("m", SHAPE, 32, {**lineage, "publication": {"licence": "Ours 2"}}).split("---\n")[1]
    )
    assert own["license"] == "other" and own["license_name"] == "Ours 2" and "language" not in own


def test_hugging_face_reads_the_front_matter() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra publish")
    card = hub.ModelCard(model_card("m", SHAPE, 32, {**LINEAGE, "weights": {"sha256": "0" * 64}}))
    assert card.data.license == "unknown" and card.data.library_name == "transformers"
    assert {result.dataset_name for result in card.data.eval_results} == set(LINEAGE["losses"])


def test_the_card_of_supervised_examples_names_them(tmp_path: Path, tokenizer_file: Path) -> None:
    spec = SPEC.model_copy(update={"mixture": (), "objective": Supervised(examples="0123456789abcdef")})
    folder = published(tmp_path / "model", tokenizer_file, spec=spec.model_dump(mode="json"), passes={"answers": 2.5})
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "supervised examples (0123456789abcdef)." in card and "| answers | 2.50 |" in card
    assert "no chat template" not in card


def test_the_card_of_one_mixture_names_one_share(tmp_path: Path, tokenizer_file: Path) -> None:
    spec = SPEC.model_copy(update={"mixture": SPEC.mixture[:1]})
    folder = published(tmp_path / "model", tokenizer_file, spec=spec.model_dump(mode="json"), passes={})
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "with one mixture throughout" in card
    assert "| news | 75.0% | 9,600 | not recorded | MIT | demo:news |" in card


@pytest.mark.slow
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
    assert "was chosen with" not in card
    assert check_lineage(folder)["verdict"] is None


@pytest.mark.parametrize(("status", "said"), [("diverged", "which diverged"), ("pending", "which has no result")])
def test_weights_of_another_seed_are_not_called_predicted(
    status: str, said: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    changed = {"verdict": None, "verdict_status": status, "prediction": {"run": "another"}}
    card = (published(tmp_path / "model", tokenizer_file, **changed) / "README.md").read_text(encoding="utf-8")
    assert "`another`" in card and said in card and "another seed" in card and "inside" not in card


def test_a_prediction_without_verdict_is_told_as_one(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file, verdict=None)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "A prediction was recorded, but no verdict." in card and "inside" not in card


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


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("older", [True, False])
def test_a_publish_killed_anywhere_is_whole_or_not_there(
    older: bool, stride: int, tmp_path: Path, tokenizer_file: Path
) -> None:
    folder, kept = tmp_path / "model", published(tmp_path / "kept", tokenizer_file, seed=1)
    seen = set()
    for point in range(1, 300, stride):
        shutil.rmtree(folder, ignore_errors=True)
        ledger_file(folder).unlink(missing_ok=True)
        if older:
            shutil.copytree(kept, folder)
            shutil.copy(ledger_file(kept), ledger_file(folder))
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
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) == ["kept", "model"]


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


FILES = [
    "README.md",
    "config.json",
    "generation_config.json",
    "lineage.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path, how: str) -> None:
    """Spoil a file in one of the ways in which files are found spoiled."""
    data = path.read_bytes()
    if how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flip":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "swap":  # with another file of the folder
        other = path.with_name("config.json" if path.name != "config.json" else "README.md")
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif how == "age":  # JSON of the time before formats, or another version
        path.write_bytes(data.replace(b'"format": 2', b'"format": 1') if b'"format": 2' in data else b"{}\n" + data)
    elif how == "remove":
        path.unlink()
    elif how == "add":
        (path.parent / f"{path.name}.mine").write_bytes(data)
    elif how == "another sealed file":
        write_sealed(path, {"format": 1, "files": {}})


def test_a_publication_has_these_files(tmp_path: Path, tokenizer_file: Path) -> None:
    assert sorted(contents(published(tmp_path / "model", tokenizer_file))) == FILES


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "swap", "age", "remove", "add"])
@pytest.mark.parametrize("name", FILES)
def test_a_changed_publication_is_seen_kept_and_published_again(
    name: str, how: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    good = contents(folder)
    assert is_published(folder, LINEAGE)
    damage(folder / name, how)
    bad = contents(folder)
    assert not is_published(folder, LINEAGE)
    if how != "add":
        with pytest.raises(UsageError if (name, how) == ("lineage.json", "remove") else DamagedFileError):
            check_lineage(folder)
    published(folder, tokenizer_file)
    assert is_published(folder, LINEAGE)
    assert contents(folder) == good
    assert contents(tmp_path / "model.kept-1") == bad


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "another sealed file"])
def test_with_a_damaged_record_what_stands_there_is_kept(how: str, tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    good = contents(folder)
    damage(ledger_file(folder), how)
    with pytest.raises(DamagedFileError, match=r"published\.json"):
        check_record(folder)
    assert not is_published(folder, {**LINEAGE, "verdict": None})
    published(folder, tokenizer_file, verdict=None)
    assert is_published(folder, {**LINEAGE, "verdict": None})
    assert contents(tmp_path / "model.kept-1") == good


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "remove", "another sealed file"])
def test_a_whole_publication_is_recorded_again(how: str, tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    before = contents(tmp_path)
    damage(ledger_file(folder), how)
    check_publishable(folder)
    assert is_published(folder, LINEAGE)
    check_record(folder)
    assert contents(tmp_path) == before


def test_with_a_newer_record_nothing_is_touched(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    record = ledger_file(folder)
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    before = contents(tmp_path)
    with pytest.raises(ForeignFileError, match="format 2"):
        published(folder, tokenizer_file, seed=5)
    assert contents(tmp_path) == before


def before_records(folder: Path) -> None:
    """Make a publication what versions without a record of publications wrote."""
    ledger_file(folder).unlink()
    document = json.loads((folder / "lineage.json").read_text())
    old = {key: value for key, value in document.items() if key not in ("files", "sha256", "passes", "verdict_status")}
    (folder / "lineage.json").write_text(json.dumps({**old, "format": 1}))


def test_a_publication_from_before_records_is_kept_and_published_again(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    before_records(folder)
    old = contents(folder)
    check_publishable(folder)
    assert not is_published(folder, LINEAGE)
    published(folder, tokenizer_file)
    assert is_published(folder, LINEAGE) and contents(tmp_path / "model.kept-1") == old


def test_a_publication_of_another_run_from_before_records_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file, run="another")
    before_records(folder)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="move"):
        published(folder, tokenizer_file)
    assert contents(tmp_path) == before


def a_file(path: Path) -> None:
    path.write_text("mine")


def own_model(path: Path) -> None:
    path.mkdir()
    for name in FILES:
        (path / name).write_text(f"my own {name}")


def own_model_with_lineage(path: Path) -> None:
    """A model that another workspace published: whole, sealed, and not from here."""
    tokenizer = path.parent / "tokenizer.json"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    Tokenizer(models.BPE({c: i for i, c in enumerate(["<|end|>", *alphabet[::-1]])}, [])).save(str(tokenizer))
    published(path.parent / "elsewhere", tokenizer, seed=9, run="elsewhere")
    (path.parent / "elsewhere").rename(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "mine": 1}))
    for name in ("generation_config.json", "tokenizer_config.json"):
        (path / name).write_text((path / name).read_text() + " ")


def notes(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def nested(path: Path) -> None:
    (path / "deep" / "deeper").mkdir(parents=True)
    (path / "deep" / "deeper" / "model.safetensors").write_text("mine")


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("make", [a_file, own_model, own_model_with_lineage, notes, nested])
def test_what_was_not_published_here_is_refused_and_stays(
    make: Any, earlier: bool, tmp_path: Path, tokenizer_file: Path
) -> None:
    folder = tmp_path / "model"
    if earlier:
        published(folder, tokenizer_file)
        shutil.rmtree(folder)
    make(folder)
    before = contents(tmp_path) if folder.is_dir() else folder.read_text()
    for attempt in (lambda: check_publishable(folder), lambda: published(folder, tokenizer_file)):
        with pytest.raises(UsageError, match="move"):
            attempt()
        assert (contents(tmp_path) if folder.is_dir() else folder.read_text()) == before


def test_the_same_weights_with_other_evidence_are_published_again(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    assert not is_published(folder, {**LINEAGE, "verdict": None})
    published(folder, tokenizer_file, verdict=None)
    assert check_lineage(folder)["verdict"] is None
    assert not (tmp_path / "model.kept-1").exists()


def test_a_publish_that_fails_leaves_a_changed_publication_where_it_was(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    (folder / "README.md").write_text("my own words")
    before = contents(folder)
    with pytest.raises(UsageError, match="tokenizer"):
        published(folder, tmp_path / "no-tokenizer.json")
    assert contents(folder) == before
    assert not (tmp_path / "model.kept-1").exists()


def test_a_published_file_leads_back_to_all_that_made_it(tmp_path: Path, tokenizer_file: Path) -> None:
    run = SPEC.id
    edges = [
        (f"run:{run}", "starts from", "run:parent"),
        ("run:parent", "trained on", "corpus:older"),
        (f"run:{run}", "trained on", "corpus:feedc0de"),
        (f"run:{run}", "argued by", "run:cc"),
    ]
    folder = published(tmp_path / "model", tokenizer_file, edges=edges)
    wanted = [f"run:{run}", "run:parent", "corpus:feedc0de", "run:cc", "corpus:older"]
    assert origins(folder / "model.safetensors") == wanted
    assert origins(folder / "README.md") == wanted
    with pytest.raises(UsageError, match=r"not a file of the publication"):
        origins(folder / "other.txt")


def rewritten(folder: Path, **changes: Any) -> None:
    """Change the lineage as a version of this program would have written it."""
    document = {**json.loads((folder / "lineage.json").read_text(encoding="utf-8")), **changes}
    del document["sha256"]
    write_sealed(folder / "lineage.json", {key: value for key, value in document.items() if value is not None})


def test_a_publication_from_before_the_edges_leads_to_run_arguments_and_corpus(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    rewritten(folder, edges=None)
    assert origins(folder / "model.safetensors") == [f"run:{SPEC.id}", "run:aa", "run:bb", "run:cc", "corpus:feedc0de"]


@pytest.mark.parametrize("edges", [3, [["a", "b"]], ["x"], {"a": 1}])
def test_edges_that_are_none_are_named(edges: Any, tmp_path: Path, tokenizer_file: Path) -> None:
    folder = published(tmp_path / "model", tokenizer_file)
    rewritten(folder, edges=edges)
    with pytest.raises(DamagedFileError, match=r"lineage\.json: its edges"):
        origins(folder / "model.safetensors")
