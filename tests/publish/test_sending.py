"""A publication on its way to a hub: what arrives, what a fault costs, and what is never sent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hub_servers import TOKEN, Fault, GitServer, HubServer, HuggingFaceServer, ModelScopeServer
from publications import published

from armillary.publish import Additions, SendOptions, Sent, Target, check_lineage, check_sums, send
from armillary.publish.hubs import hub as hubs
from armillary.publish.plan import FILE, read_plan
from armillary.recipe import ArmillaryError, DamagedFileError, UsageError

REPO = "me/sphere-1"
VARIABLES = {
    "huggingface": "HF_TOKEN",
    "gitee": "GITEE_TOKEN",
    "modelscope": "MODELSCOPE_API_TOKEN",
    "modelers": "MODELERS_TOKEN",
}
ENDPOINTS = {
    "huggingface": "HF_ENDPOINT",
    "gitee": "GITEE_ENDPOINT",
    "modelscope": "MODELSCOPE_ENDPOINT",
    "modelers": "MODELERS_ENDPOINT",
}


@pytest.fixture(scope="module")
def once(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "model", tokenizer_file)


@pytest.fixture
def model(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "model"))


@pytest.fixture(params=list(VARIABLES))
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server of a hub with the repository ``REPO``, its address and token in the environment."""
    name = request.param
    server: Any
    if name == "huggingface":
        constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra publish")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        server = HuggingFaceServer()
    elif name == "modelscope":
        pytest.importorskip("modelscope_hub", reason="needs the extra publish")
        server = ModelScopeServer()
    else:
        if shutil.which("git-lfs") is None:
            pytest.skip("needs git-lfs")
        server = GitServer(tmp_path / "repositories")
        if name == "gitee":
            server.create(REPO)
    server.hub = name
    monkeypatch.setenv(VARIABLES[name], TOKEN)
    monkeypatch.setenv(ENDPOINTS[name], server.url)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hubs, "WAITS_S", (0.01, 0.01))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with server.running():
        yield server


def options(hub: Any, **changed: Any) -> SendOptions:
    target = Target(REPO, changed.pop("revision", None))
    return SendOptions(hub.hub, target, changed.pop("additions", Additions("mit")), load=False, **changed)


def there(hub: Any, branch: str | None = None) -> dict[str, bytes]:
    """What the hub holds, with the bytes of LFS objects."""
    if isinstance(hub, GitServer):
        return hub.holds(REPO, branch or "master")
    files = hub.repos[REPO] if isinstance(hub, ModelScopeServer) else hub.repos[REPO][branch or "main"]
    return {name: hub.objects[content] if isinstance(content, str) else content for name, content in files.items()}


def arrived(hub: Any, found: Sent, branch: str | None = None) -> None:
    """Every file is there as it was listed, and the folder is a publication."""
    held = there(hub, branch)
    for file in found.files:
        assert hashlib.sha256(held[file.name]).hexdigest() == file.sha256, file.name


def without_token(folder: Path) -> None:
    """No file under ``folder`` holds the token."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_a_publication_arrives_whole_and_only_once(hub: HubServer, model: Path, tmp_path: Path) -> None:
    found = send(model, options(hub))
    assert found.transferred is not None and "model.safetensors" in found.transferred.sent
    arrived(hub, found)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in there(hub).items():
        (copy / name).write_bytes(content)
    assert check_lineage(copy)["run"] and len(check_sums(copy)) == len(found.files) - 1
    before = len(hub.put())
    again = send(model, options(hub))
    assert again.transferred is not None and again.transferred.sent == () and len(hub.put()) == before == 1
    without_token(tmp_path)
    for asked in hub.asked:
        assert TOKEN not in asked.path and TOKEN.encode() not in asked.body


@pytest.mark.slow
def test_a_branch_and_a_changed_card(hub: HubServer, model: Path) -> None:
    send(model, options(hub))
    assert b"license: mit\n" in there(hub)["README.md"]
    branch = None if isinstance(hub, ModelScopeServer) else "v2"
    found = send(model, options(hub, revision=branch, additions=Additions("apache-2.0", ("en", "zh"))))
    arrived(hub, found, branch)
    assert b"license: apache-2.0\nlanguage:\n- en\n- zh\n" in there(hub, branch)["README.md"]
    if branch is not None:
        assert b"license: mit\n" in there(hub)["README.md"]
    assert len(hub.put()) == 1, "the weights are there already"


COMMIT = "(commit/ma(in|ster)|git-receive-pack)$"
FAULTS = [
    ("PUT", "lfs-objects", "torn"),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in (
            ("PUT", "lfs-objects", 500),
            ("POST", COMMIT, 500),
            ("PUT", "lfs-objects", 429),
            ("PUT", "lfs-objects", "slow"),
            ("POST", "batch", 503),
            ("POST", "batch", "torn"),
            ("POST", COMMIT, "torn"),
            ("GET", "(tree/main|info/refs|repo/files)", 502),
            ("GET", "(tree/main|info/refs|repo/files)", "torn"),
        )
    ),
]


@pytest.mark.parametrize(("method", "path", "how"), FAULTS)
def test_a_fault_that_passes_costs_nothing(method: str, path: str, how: int | str, hub: HubServer, model: Path) -> None:
    hub.faults = [Fault(method, path, how)]
    found = send(model, options(hub))
    assert hub.faults[0].times == 0, "the fault was met"
    arrived(hub, found)


@pytest.mark.parametrize("status", [401, pytest.param(403, marks=pytest.mark.slow)])
def test_a_token_that_is_refused_is_named_and_not_shown(status: int, hub: Any, model: Path) -> None:
    hub.faults = [Fault(method, "", status, 1000) for method in ("GET", "POST")]
    with pytest.raises(UsageError, match=VARIABLES[hub.hub]) as caught:
        send(model, options(hub))
    assert TOKEN not in str(caught.value) and str(status) in str(caught.value)
    without_token(model.parent)


def test_a_hub_that_stays_away_is_resumed(hub: HubServer, model: Path, tmp_path: Path) -> None:
    """The commit fails for good; the next call sends no file again."""
    hub.faults = [Fault("POST", COMMIT, 500, 1000)]
    with pytest.raises(ArmillaryError, match="the same command resumes"):
        send(model, options(hub))
    plan = next(tmp_path.glob(f".model.*/{FILE}"))
    rows = {file.name: file.sent for file in read_plan(plan).files}  # type: ignore[union-attr]
    assert rows["model.safetensors"]
    hub.faults = []
    found = send(model, options(hub))
    assert found.transferred is not None and "model.safetensors" not in found.transferred.sent
    assert len(hub.put()) == 1
    arrived(hub, found)
    receipt = read_plan(plan)
    assert receipt is not None and receipt.checked and sorted(p.name for p in plan.parent.iterdir()) == ["lock", FILE]


@pytest.mark.slow
def test_other_bytes_at_the_hub_are_found(hub: Any, model: Path) -> None:
    hub.faults = [Fault("PUT", "lfs-objects", "other")]
    with pytest.raises(ArmillaryError, match=r"model\.safetensors") as caught:
        send(model, options(hub))
    assert "sends it again" in str(caught.value)
    hub.objects.clear()
    found = send(model, options(hub))
    arrived(hub, found)


@pytest.mark.parametrize("point", [2, *(pytest.param(i, marks=pytest.mark.slow) for i in (0, 1, 3, 4, 5))])
def test_a_transfer_killed_at_any_file_repeats_none(point: int, hub: Any, model: Path) -> None:
    child = os.fork()
    if child == 0:
        count = 0

        def die(done: int, of: int, name: str) -> None:
            nonlocal count
            count += 1
            if count > point + 3:
                os.kill(os.getpid(), signal.SIGKILL)

        with suppress(BaseException):
            send(model, options(hub), die)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    found = send(model, options(hub))
    arrived(hub, found)
    assert len(hub.put()) == 1


def test_a_new_repository_states_its_licence_and_who_sees_it(hub: Any, model: Path) -> None:
    target = Target(REPO, private=True)
    if hub.hub in ("modelscope", "modelers"):
        with pytest.raises(UsageError, match="--licence"):
            send(model, SendOptions(hub.hub, target, load=False))
    send(model, SendOptions(hub.hub, target, Additions("mit"), load=False))
    if hub.hub == "huggingface":
        assert hub.private[REPO]
    elif hub.hub == "modelscope":
        assert hub.created == [{"Path": "me", "Name": "sphere-1", "Visibility": 1, "License": "mit"}]
    elif hub.hub == "modelers":
        (about,) = [json.loads(asked.body) for asked in hub.asked if asked.path == "/api/v1/model"]
        assert about == {"name": "sphere-1", "owner": "me", "license": "mit", "visibility": "private"}
    else:
        with pytest.raises(UsageError, match="a new repository is created at"):
            send(model, SendOptions(hub.hub, Target("me/other"), load=False))


def test_a_dry_run_needs_no_hub_and_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    before = sorted(model.parent.rglob("*"))
    found = send(model, SendOptions("gitee", Target(REPO), load=False, dry_run=True))
    assert found.transferred is None and "SHA256SUMS" in {file.name for file in found.files}
    assert sorted(model.parent.rglob("*")) == before
    with pytest.raises(UsageError, match="HF_TOKEN: not set"):
        send(model, SendOptions("huggingface", Target(REPO), load=False))
    with pytest.raises(UsageError, match="unknown hub"):
        send(model, SendOptions("hub", Target(REPO)))
    for repo in ("sphere", "me/a/b", "me/a b", "https://me/x", "/x"):
        with pytest.raises(UsageError, match="OWNER/NAME"):
            Target(repo)


@pytest.mark.slow
def test_a_damaged_plan_is_named(hub: HubServer, model: Path, tmp_path: Path) -> None:
    send(model, options(hub))
    plan = next(tmp_path.glob(f".model.*/{FILE}"))
    plan.write_text(plan.read_text().replace('"sent": true', '"sent": false'))
    with pytest.raises(DamagedFileError, match=r"plan\.json.*remove it"):
        send(model, options(hub))
    plan.unlink()
    assert send(model, options(hub)).transferred is not None


def test_a_model_that_is_changed_or_holds_other_files_stays(model: Path) -> None:
    (model / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        send(model, SendOptions("gitee", Target(REPO), load=False, dry_run=True))
    (model / "notes.txt").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "a": 1}))
    with pytest.raises(DamagedFileError, match=r"config\.json"):
        send(model, SendOptions("gitee", Target(REPO), load=False, dry_run=True))
    with pytest.raises(UsageError, match="not found"):
        send(model / "missing", SendOptions("gitee", Target(REPO), dry_run=True))
