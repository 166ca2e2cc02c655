"""A device of a name that no source knows trains as the CPU does: nothing in the trainer depends on the vendor."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.recipe import Experts, LargeRun, Layout, read_result
from armillary.train import train_run

_SCRIPT = Path(__file__).with_name("other_device.py")


def start(large, folder, **environment):
    """Carry out ``large`` on the device; returns a function that waits for it."""
    command = [sys.executable, str(_SCRIPT), "abacus", large.model_dump_json(), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})

    def wait():
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said

    return wait


@pytest.fixture(params=["dense", pytest.param("experts", marks=pytest.mark.slow)])
def spec(request, make_spec):
    spec = make_spec()
    if request.param == "experts":
        return make_spec(model=spec.model.model_copy(update={"experts": Experts(count=4, active=2, d_ff=16)}))
    return spec


def test_one_device_trains_stops_and_resumes(spec, tiny_corpus, tmp_path):
    start(LargeRun(name="run", corpus=str(tiny_corpus.path), run=spec), tmp_path / "there")()
    here = train_run(spec, tiny_corpus, tmp_path / "here")
    assert read_result(tmp_path / "there").loss == pytest.approx(here.loss, abs=1e-5)


# FSDP2 frees the memory behind a tensor, which a tensor without memory of its own does not have
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(Layout(), id="one"),
        pytest.param(Layout(pp=2), id="pp2", marks=pytest.mark.slow),
        pytest.param(Layout(tp=2), id="tp2", marks=pytest.mark.slow),
    ],
)
def test_ranks_train(make_spec, tiny_corpus, tmp_path, layout):
    spec = make_spec(model=make_spec().model.model_copy(update={"n_layers": 2, "n_kv_heads": 2}))
    large = LargeRun(name="run", corpus=str(tiny_corpus.path), run=spec, layout=layout)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(layout.ranks)}
    ranks = [start(large, tmp_path / "there", **world, RANK=str(r), LOCAL_RANK="0") for r in range(layout.ranks)]
    for wait in ranks:
        wait()
    here = train_run(spec, tiny_corpus, tmp_path / "here")
    assert read_result(tmp_path / "there").loss == pytest.approx(here.loss, abs=1e-5)
