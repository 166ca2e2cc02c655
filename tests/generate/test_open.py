"""Which engine opens what; and that a new engine is one new file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from armillary.generate import BackendOptions, EndpointOptions, Prices, open_backend, registry
from armillary.recipe import UsageError


@pytest.mark.parametrize(
    ("target", "engine"),
    [
        ("https://host/v1", "endpoint"),
        ("http://127.0.0.1:8000", "endpoint"),
        ("a/b.gguf", "llama.cpp"),
        ("B.GGUF", "llama.cpp"),
    ],
)
def test_a_target_names_its_engine(target: str, engine: str) -> None:
    assert next(one.name for one in registry.engines() if one.recognises(target)) == engine


def test_a_folder_that_the_native_backend_computes_is_its_own_and_others_are_not(tiny_hf: Path, tmp_path: Path) -> None:
    assert open_backend(str(tiny_hf)).identity["backend"] == "native"
    folder = tmp_path / "model"
    shutil.copytree(tiny_hf, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gemma", "architectures": ["Other"]}))
    assert next(one.name for one in registry.engines() if one.recognises(str(folder))) == "transformers"


def test_a_new_engine_is_registered_by_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENGINES", dict(registry._ENGINES))

    @registry.register("new", lambda target: target.startswith("new:"), {"batch_size"})
    def opens(target: str, options: BackendOptions) -> Any:
        return target, options.batch_size

    assert open_backend("new:model", BackendOptions(batch_size=3)) == ("new:model", 3)
    assert open_backend("anything", name="new") == ("anything", None)
    with pytest.raises(
        UsageError, match="context is not an option of the new backend for new:model; its options: batch size"
    ):
        open_backend("new:model", BackendOptions(context=3))
    with pytest.raises(ValueError, match="already registered"):
        registry.register("new", lambda _: True, set())(opens)
    with pytest.raises(ValueError, match="does not exist"):
        registry.register("newer", lambda _: True, {"colour"})(opens)


def test_what_no_engine_recognises_is_refused(tmp_path: Path) -> None:
    for target in (str(tmp_path), str(tmp_path / "nowhere"), ""):
        with pytest.raises(UsageError, match="not a model that any backend recognises"):
            open_backend(target)
    with pytest.raises(UsageError, match="backend 'nativ' does not exist; nearest: 'native'"):
        open_backend(str(tmp_path), name="nativ")


def test_settings_of_an_endpoint_are_read_from_text() -> None:
    settings = ["model=a=b", "prices=0.5,2", "cache=x/y", "retries=0", 'extra={"a": [1]}', "api=chat", "timeout_s=2.5"]
    assert EndpointOptions.from_settings(settings) == EndpointOptions(
        model="a=b",
        prices=Prices(0.5, 2.0),
        cache=Path("x/y"),
        retries=0,
        extra={"a": [1]},
        api="chat",
        timeout_s=2.5,
    )
    for wrong in ("model", "modell=a", "prices=1", "prices=-1,2", "prices=a,b", "retries=x", "retries=-1", "extra=[1]",
                  "extra={", "api=both", "timeout_s=0", "timeout_s=nan"):  # fmt: skip
        with pytest.raises(UsageError):
            EndpointOptions.from_settings([wrong])
