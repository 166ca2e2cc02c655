"""From each model of a post-training one can walk back to every file of its data and to the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_teaching import make

from armillary.path.teach import Step, teach
from armillary.post.tuning import digest_model
from armillary.publish import lineage_of, origins
from armillary.publish.stage import Additions, stage
from armillary.recipe import ArmillaryError, UsageError, read_sealed

FILES = {f"{name}/items.jsonl" for name in ("questions", "verified", "questions-clean", "held-out", "harder")}


def names_behind(path: Path) -> set[str]:
    """Equal files are one node with several names."""
    found = lineage_of(path)
    return {name for node in found.origins for name in found.names.get(node, "").split(", ")}


def test_a_model_leads_to_the_base_and_every_file_of_its_data(taught: tuple[Path, list[Step]], tiny_hf: Path) -> None:
    out = taught[0] / "out"
    found = lineage_of(out / "sft" / "model")
    assert f"model:{digest_model(tiny_hf)}" in found.origins
    assert names_behind(out / "sft" / "model") >= FILES
    # the prediction leads to the runs on parts, and these to the parts
    run = read_sealed(out / "sft" / "record.json", "record", 1, "")["run"]
    assert {f"run:{run}", f"prediction:{run}"} <= set(found.origins)
    assert {"gain/0.125.jsonl", "gain/0.25.jsonl", "gain/0.5.jsonl"} <= names_behind(out / "sft" / "model")
    assert sum(node.startswith("run:") for node in found.origins) == 4
    # the folder of the stage and its weights are the same model, and the folder of the whole is the one taken
    assert lineage_of(out / "sft").origins == found.origins
    assert lineage_of(out / "sft" / "model" / "config.json").origins == found.origins
    assert lineage_of(out).node == f"model:{digest_model(tiny_hf)}"


def test_every_file_of_data_has_an_edge(taught: tuple[Path, list[Step]]) -> None:
    """Every input of a stage or training is the output of another one, a joined file, or an evaluation set."""
    out = taught[0] / "out"
    record = read_sealed(out / "record.json", "record", 1, "")
    nodes = {node for edge in record["edges"] for node in (edge[0], edge[2]) if node.startswith("data:")}
    assert nodes <= record["names"].keys()
    made = {node for node, _, origin in record["edges"] if node != origin}
    roots = {name for node in nodes - made for name in record["names"][node].split(", ")}
    assert roots >= {"held-out/items.jsonl", "harder/items.jsonl", "prose.jsonl"}
    assert all(name.endswith("items.jsonl") or name == "prose.jsonl" for name in roots)
    assert str(taught[0]) not in json.dumps(record)


@pytest.mark.slow
def test_a_second_call_leaves_the_same_lineage(taught: tuple[Path, list[Step]], tiny_hf: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(taught[0] / "out", tmp_path / "out"))
    before = read_sealed(out / "record.json", "record", 1, "")
    teach(make(taught[0], tiny_hf), out)
    after = read_sealed(out / "record.json", "record", 1, "")
    assert sorted(after["edges"]) == sorted(before["edges"]) and after["names"] == before["names"]


def test_a_published_model_leads_there_without_the_folder(
    taught: tuple[Path, list[Step]], tiny_hf: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(taught[0] / "out", tmp_path / "out"))
    published = tmp_path / "published"
    stage(out / "sft" / "model", published, "tiny", Additions())
    shutil.rmtree(out)
    found = set(origins(published / "model.safetensors"))
    assert f"model:{digest_model(tiny_hf)}" in found and names_behind(published) >= FILES
    document = json.loads((published / "lineage.json").read_text())
    assert str(tmp_path) not in json.dumps(document["edges"]) and str(taught[0]) not in json.dumps(document["edges"])
    (published / "config.json").write_text("{}")
    with pytest.raises(ArmillaryError, match=r"config\.json"):
        lineage_of(published)


def test_the_console_walks_a_post_training_and_a_published_model(
    taught: tuple[Path, list[Step]], tmp_path: Path
) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from armillary.console import ConsoleOptions, create_app

    out = Path(shutil.copytree(taught[0] / "out", tmp_path / "place" / "taught", symlinks=True))
    stage(out / "sft" / "model", tmp_path / "place" / "published", "tiny", Additions())
    record = read_sealed(out / "record.json", "record", 1, "")
    data = next(node for node, name in record["names"].items() if "questions/items.jsonl" in name)
    run = read_sealed(out / "sft" / "record.json", "record", 1, "")["run"]
    for place, name in ((out, "taught"), (tmp_path / "place" / "published", "published")):
        app = create_app(ConsoleOptions((str(place),)), None)
        client = testclient.TestClient(app, base_url="http://localhost")
        listed = client.get("/lineage").text
        key = listed.partition("/publication/")[2].partition('"')[0]
        assert name in listed and key
        shown = client.get(f"/lineage/0/publication/{key}").text
        node = client.get(f"/lineage/0/{data.replace(':', '/')}?in={key}")
        assert node.status_code == 200 and "questions/items.jsonl" in node.text
        trained = client.get(f"/lineage/0/run/{run}?in={key}").text
        assert "verified/items.jsonl" in trained and "held-out" in shown
        app.state.watch.close()


def test_what_has_no_lineage_is_named(tmp_path: Path, tiny_hf: Path, taught: tuple[Path, list[Step]]) -> None:
    for path, said in (
        (tmp_path / "gone", "no such file or folder"),
        (tmp_path, "has no lineage; give a published folder"),
        (tiny_hf, "no record leads to its origins"),
    ):
        with pytest.raises(UsageError, match=said):
            lineage_of(path)
    changed = Path(shutil.copytree(taught[0] / "out" / "sft", tmp_path / "sft"))
    config = changed / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(UsageError, match="beside its unchanged files"):
        lineage_of(changed)
