"""Other people's runs as a table: written by their own programs, torn, hostile, and with names of all kinds."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_run, made_spec

from armillary.cli import main
from armillary.laws import read_table
from armillary.recipe import UsageError
from armillary.trackers import Destination, export_runs, run_in
from armillary.trackers.importing import make_table, read_runs, write_table

tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="pip install 'armillary[tensorboard]'"
)
wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install 'armillary[wandb]'")

SIZES = [(n, d) for n in (5e6, 2e7, 8e7) for d in (2e8, 8e8, 3.2e9)]


def loss(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


def taken(imported: Any) -> dict[str, tuple[str, str]]:
    return {one.column: (one.source, one.role) for one in imported.taken}


def left(imported: Any) -> dict[str, str]:
    return {one.name: one.why for one in imported.left_out}


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    """Runs as PyTorch's writer leaves them, one with settings in a separate folder."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for number, (n, d) in enumerate(SIZES):
        with SummaryWriter(str(tmp_path / "boards" / f"run{number}")) as writer:
            for step in (1, 2, 3):
                writer.add_scalar("val/loss", loss(n, d) + 3 - step, step)
                writer.add_scalar("acc", 0.1 * step, step)
                writer.add_scalar("tokens_seen", d * step / 3, step)
            writer.add_hparams({"n_params": n, "family": "ab"[number % 2], "z_loss": 0.1}, {"hparam/x": 1.0})
    return tmp_path / "boards"


@tensorboard
def test_tensorboard_to_a_law(boards: Path, tmp_path: Path) -> None:
    from armillary.laws import workbench

    imported = make_table(*read_runs("tensorboard", [boards]))
    assert len(imported.rows) == 9 and imported.notes == []
    assert imported.columns == ["run", "params", "tokens", "val/loss", "family"]
    assert taken(imported)["params"] == ("n_params", "params")
    assert taken(imported)["tokens"] == ("tokens_seen", "tokens")
    assert left(imported)["acc"] == "not known as a loss"
    assert left(imported)["z_loss"] == "the same in every run"
    write_table(imported, tmp_path / "table.csv")
    law = workbench.fit_scaling(tmp_path / "table.csv")
    assert law is not None
    table = read_table(tmp_path / "table.csv")
    (found,) = table.losses(["val/loss"])[0][0]
    assert found == pytest.approx(loss(*SIZES[0]), rel=1e-6)  # the last value


@tensorboard
def test_what_is_torn_is_named_and_what_is_whole_is_read(boards: Path) -> None:
    (path,) = [file for file in (boards / "run3").glob("*tfevents*") if file.is_file()]
    os.truncate(path, path.stat().st_size - 20)
    (other,) = [file for file in (boards / "run4").glob("*tfevents*") if file.is_file()]
    data = bytearray(other.read_bytes())
    data[len(data) // 2] ^= 1
    other.write_bytes(bytes(data))
    imported = make_table(*read_runs("tensorboard", [boards]))
    assert len(imported.notes) == 2
    assert (
        f"{path}: torn (a record is cut off at byte" in imported.notes[0] and "before it were read" in imported.notes[0]
    )
    assert f"{other}: torn (" in imported.notes[1]


@tensorboard
def test_an_export_comes_back(tmp_path: Path) -> None:
    specs = [made_spec(seed=1), made_spec(seed=1, depth=2), made_spec(seed=2, steps=40)]
    for number, spec in enumerate(specs):
        made_run(tmp_path / "runs" / str(number), spec)
        chosen = run_in(tmp_path / "runs" / str(number))
        assert chosen is not None
        list(export_runs([chosen], Destination("tensorboard", str(tmp_path / "tb"), "p")))
    imported = make_table(*read_runs("tensorboard", [tmp_path / "tb"]))
    rows = sorted(imported.rows, key=lambda row: str(row["run"]))
    assert [row["params"] for row in rows] == [spec.model.parameters for spec in specs]
    assert [row["tokens"] for row in rows] == [spec.tokens for spec in specs]
    assert {"loss", "validation/sky/loss", "validation/sea/loss", "depth"} <= set(imported.columns)


@wandb
@pytest.mark.slow
def test_wandb_offline_runs(tmp_path: Path) -> None:
    """Written by the package itself, one of them in two attempts, one torn."""
    import wandb as package

    settings = package.Settings(mode="offline", silent=True, console="off")
    for number, (n, d) in enumerate([*SIZES, SIZES[0]]):
        name = f"r{number % 9}"
        run = package.init(
            dir=str(tmp_path), project="theirs", id=name, name=f"<b>{name}", reinit="create_new", settings=settings,
            resume="allow", config={"model": {"n_params": n}, "tokens": d, "arch": "xy"[number % 2], "note": "=1+1"},
        )  # fmt: skip
        for step in range(1, 4):
            run.log({"eval/loss": loss(n, d) + 3 - step, "nested": {"val_loss": 3.0}, "text": "x"}, step=step + number)
        run.finish()
    (path,) = (tmp_path / "wandb").glob("offline-run-*-r4/*.wandb")
    os.truncate(path, path.stat().st_size - 100)
    imported = make_table(*read_runs("wandb", [tmp_path / "wandb"]))
    assert len(imported.rows) == 9
    assert taken(imported)["params"] == ("model.n_params", "params") and taken(imported)["tokens"] == (
        "tokens",
        "tokens",
    )
    assert {"eval/loss", "nested.val_loss", "arch"} <= set(imported.columns)
    assert left(imported)["note"] == "the same in every run"
    assert len(imported.notes) == 1 and f"{path}: torn (" in imported.notes[0]
    by_run = {row["run"]: row for row in imported.rows}
    assert by_run["<b>r1"]["eval/loss"] == pytest.approx(loss(*SIZES[1]))


@wandb
def test_wandb_summaries_where_the_log_is_missing(tmp_path: Path) -> None:
    for number, (n, d) in enumerate(SIZES[:3]):
        files = tmp_path / f"run-20260101_000000-r{number}" / "files"
        files.mkdir(parents=True)
        (files / "wandb-summary.json").write_text(json.dumps({"loss": loss(n, d), "_step": 7, "tokens": d}))
        (files / "config.yaml").write_text(f"_wandb:\n  value: {{}}\nn_params:\n  desc: null\n  value: {n}\n")
    (tmp_path / "run-x").mkdir()
    (tmp_path / "run-x" / "wandb-summary.json").write_text("{torn")
    imported = make_table(*read_runs("wandb", [tmp_path]))
    assert [row["run"] for row in imported.rows] == ["r0", "r1", "r2"]
    assert imported.columns == ["run", "params", "tokens", "loss"] and "cannot be read" in imported.notes[0]


@wandb
@pytest.mark.parametrize("content", [b"", b":W&B", b"not it", b":W&B\xe1\xbe\x00" + b"\xff" * 40])
def test_a_file_that_is_no_run_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run-a.wandb").write_bytes(content)
    runs, notes = read_runs("wandb", [tmp_path])
    assert runs == [] and "run-a.wandb: torn (" in notes[0]


@wandb
def test_a_name_with_hyphens_a_later_summary_and_values_of_other_kinds(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    files = tmp_path / "run-20260101_000000-my-run-7" / "files"
    files.mkdir(parents=True)
    (files / "wandb-summary.json").write_text(json.dumps({"loss": 3.0, "tokens": 10**400, "deep": [[1]]}))
    (files / "config.yaml").write_text("a: &a [*a]\n")  # contains itself
    runs, notes = read_runs("wandb", [tmp_path])
    assert [run.name for run in runs] == ["my-run-7"] and runs[0].last == {"loss": 3.0}
    assert len(notes) == 1 and "config.yaml: cannot be read" in notes[0]

    def record(kind: str, values: dict[str, str]) -> bytes:
        made = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        place = made.history.item if kind == "history" else made.summary.update
        for name, text in values.items():
            place.add(key=name, value_json=text)
        return bytes(made.SerializeToString())

    records = [
        *(record("summary", {"final/loss": text}) for text in ("9", "2.5", "NaN")),
        *(record("history", {"loss": "3", "_step": text}) for text in ("null", "Infinity", '"x"', "[1]")),
        record("history", {"loss": "2", "_step": "7"}),
        record("summary", {"loss": "1"}),
    ]
    (tmp_path / "run-b.wandb").write_bytes(b":W&B\xe1\xbe\x00" + b"".join(map(wandb_frame, records)))
    runs, notes = read_runs("wandb", [tmp_path / "run-b.wandb"])
    assert notes == [] and runs[0].last == {"final/loss": 2.5, "loss": 2.0}


def wandb_frame(content: bytes) -> bytes:
    return struct.pack("<IHB", zlib.crc32(content, zlib.crc32(b"\x01")), len(content), 1) + content


@tensorboard
def test_tensors_and_hyperparameters_of_other_kinds(tmp_path: Path) -> None:
    """Tensors that claim a size, bytes that are no hyperparameters, hyperparameters that are lists."""
    from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    def shaped(*sizes: int) -> Any:
        dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes]
        return tensor_pb2.TensorProto(
            dtype=types_pb2.DT_FLOAT, float_val=[2.0], tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims)
        )

    def hparams(content: bytes) -> Any:
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=content)
        return summary_pb2.Summary.Value(tag="h", metadata=summary_pb2.SummaryMetadata(plugin_data=plugin))

    data = plugin_data_pb2.HParamsPluginData()
    data.session_start_info.hparams["n_params"].number_value = 5e6
    data.session_start_info.hparams["list"].list_value.values.add(number_value=1)
    values = [
        summary_pb2.Summary.Value(tag="huge/loss", tensor=shaped(10**6, 10**6)),
        summary_pb2.Summary.Value(tag="val/loss", tensor=shaped()),
        hparams(b"\xff\xff"),
        hparams(data.SerializeToString()),
    ]
    with open(tmp_path / "events.out.tfevents.1", "wb") as file:
        for value in values:
            event = event_pb2.Event(step=1, summary=summary_pb2.Summary(value=[value]))
            RecordWriter(file).write(event.SerializeToString())
    (run,), notes = read_runs("tensorboard", [tmp_path])
    assert run.last == {"val/loss": 2.0} and run.config == {"n_params": 5e6} and notes == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.csv").write_text("run,params,tokens,loss\na,5M,1e9,3\n")
    (tmp_path / "closed").mkdir()
    deep = tmp_path.joinpath(*"123456789")
    deep.mkdir(parents=True)
    (deep / "b.csv").write_text("run,loss\nb,3\n")
    listed = Path.iterdir

    def closed(path: Path) -> Any:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    runs, notes = read_runs("csv", [tmp_path, tmp_path])  # the same folder twice is read once
    assert [run.name for run in runs] == ["a"]
    assert f"{tmp_path / 'closed'}: cannot be read (Permission denied)" in notes
    assert any("more than 8 folders deep" in note for note in notes)


def test_runs_of_one_name_and_a_join_that_names_a_run_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("run,params,tokens,loss\na,5M,1e9,3\na,6M,1e9,3\n")
    (tmp_path / "b.csv").write_text("run,params,tokens,loss\na-2,7M,1e9,3\n")
    imported = make_table(*read_runs("csv", [tmp_path]))
    assert len({row["run"] for row in imported.rows}) == 3
    (tmp_path / "join.csv").write_text("run,n_params\na,5M\na,6M\n")
    with pytest.raises(UsageError, match=r"join.csv: run 'a' is there twice"):
        make_table(*read_runs("csv", [tmp_path / "a.csv"]), tmp_path / "join.csv")


def test_csv_with_a_row_per_run(tmp_path: Path) -> None:
    lines = [
        "name;params;tokens seen;val_loss;optimizer",
        *(f"r{k};{n / 1e6:g}M;{d:g};{loss(n, d):.4f};{'ab'[k % 2]}" for k, (n, d) in enumerate(SIZES)),
    ]
    lines.append("r9;5M;1e9;nan;a")
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    imported = make_table(*read_runs("csv", [tmp_path / "runs.csv"]))
    assert imported.columns == ["run", "params", "tokens", "val_loss", "optimizer"]
    assert imported.rows[1]["params"] == 5e6 and len(imported.rows) == 9
    assert left(imported)["r9"] == "it has no finite loss"
    # numbers of a joined table stay numbers, also below zero
    (tmp_path / "more.csv").write_text("run,shift,sign\n" + "".join(f"r{k},-3.2,-a\n" for k in range(9)))
    write_table(make_table(*read_runs("csv", [tmp_path / "runs.csv"]), tmp_path / "more.csv"), tmp_path / "out.csv")
    table = read_table(tmp_path / "out.csv")
    assert set(table.text("shift")) == {"-3.2"} and set(table.text("sign")) == {"'-a"}


def test_csv_with_a_row_per_step_and_a_table_of_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    for number, (_, d) in enumerate(SIZES[:4]):
        rows = [f"{step},{step * d / 10:g},{5 - step / 10}" for step in range(1, 11)]
        end = "\n11,5" if number == 2 else "\n"  # a line that was cut off
        (folder / f"r{number}.csv").write_text("\n".join(["step,tokens,train_loss", *rows]) + end)
    (folder / "torn.csv").write_text('step,loss\n1,"a\n')
    imported = make_table(*read_runs("csv", [folder]))
    assert any("r2.csv: torn (line 12 is cut off)" in note for note in imported.notes)
    assert any("torn.csv" in note and "was left out" in note for note in imported.notes)
    assert any("no setting is known as params" in note and "--join" in note for note in imported.notes)
    (tmp_path / "sizes.csv").write_text("run,n_params,family\nr0,5M,a\nr1,5M,b\nr3,20M,a\n")
    imported = make_table(*read_runs("csv", [folder]), tmp_path / "sizes.csv")
    assert [row["run"] for row in imported.rows] == ["r0", "r1", "r3"]
    assert left(imported)["r2"] == "it has no params"
    assert imported.columns == ["run", "params", "family", "tokens", "train_loss"]
    with pytest.raises(UsageError, match="no run of it is one of those"):
        (tmp_path / "sizes.csv").write_text("run,n_params\nother,5M\n")
        make_table(*read_runs("csv", [folder]), tmp_path / "sizes.csv")


def test_settings_in_a_history_are_numbers_also_zero_and_behind_a_gap(tmp_path: Path) -> None:
    rows = "".join(f"{step},1e9,{3 - step / 10},0,{'8' if step > 1 else ''}\n" for step in range(1, 5))
    (tmp_path / "a.csv").write_text("step,tokens,loss,dropout,params\n" + rows)
    (run,) = read_runs("csv", [tmp_path / "a.csv"])[0]
    assert run.config["dropout"] == 0.0 and run.config["params"] == 8.0
    assert isinstance(run.config["dropout"], float)


def test_a_table_inside_the_folder_that_is_read_is_refused(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    (tmp_path / "a.csv").write_text("run,params,tokens,loss\na,5M,1e9,3\nb,7M,1e9,2.9\n")
    monkeypatch.setattr("sys.argv", ["armillary", "import", "csv", str(tmp_path), "--out", str(tmp_path / "out.csv")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "lies in a folder that is read" in capfd.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out.csv").exists()


def test_csv_of_a_chart(tmp_path: Path) -> None:
    head = '"Step","a - val/loss","a - val/loss__MIN","b - c - val/loss"'
    (tmp_path / "chart.csv").write_text(f"{head}\n1,3,2,4\n2,2.5,2,\n")
    imported = make_table(*read_runs("csv", [tmp_path / "chart.csv"]))
    assert {row["run"]: row["val/loss"] for row in imported.rows} == {"a": 2.5, "b - c": 4.0}


def test_two_settings_that_may_be_the_size_are_left_to_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("run,params,model_size,tokens,loss\na,5M,6M,1e9,3\nb,7M,8M,1e9,2.9\n")
    imported = make_table(*read_runs("csv", [tmp_path / "a.csv"]))
    assert "params" not in imported.columns
    assert "may both be params; name the one that is meant with --join" in left(imported)["params"]


def test_hostile_names_are_text_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'run,params,tokens,loss,who\n"=HYPERLINK(""x"")",5M,1e9,3,"@a"\n"b\n<i>",5M,1e9,3,c\n'
    )
    imported = make_table(*read_runs("csv", [tmp_path / "a.csv"]))
    write_table(imported, tmp_path / "out.csv")
    table = read_table(tmp_path / "out.csv")
    assert table.text("run") == ['\'=HYPERLINK("x")', "b <i>"] and table.text("who") == ["'@a", "c"]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/armillary-was-here",)


@pytest.mark.parametrize(
    "kind", ["csv", pytest.param("tensorboard", marks=tensorboard), pytest.param("wandb", marks=wandb)]
)
def test_pickles_are_never_read(kind: str, tmp_path: Path) -> None:
    name = {"csv": "a.csv", "tensorboard": "events.out.tfevents.1", "wandb": "run-a.wandb"}[kind]
    Path("/tmp/armillary-was-here").unlink(missing_ok=True)
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    (tmp_path / "history.pkl").write_bytes(pickle.dumps(Evil()))
    try:
        runs, notes = read_runs(kind, [tmp_path])
        assert notes or not runs or not runs[0].last
    except UsageError:
        pass
    assert not Path("/tmp/armillary-was-here").exists()


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file or folder"):
        read_runs("csv", [tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="holds no CSV files"):
        read_runs("csv", [tmp_path])
    with pytest.raises(UsageError, match="none of 1 run has a loss"):
        (tmp_path / "a.csv").write_text("run,params,tokens,acc\na,5M,1e9,3\n")
        make_table(*read_runs("csv", [tmp_path]))
