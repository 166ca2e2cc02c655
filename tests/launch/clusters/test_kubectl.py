"""The commands and files for kubectl, with the real kubectl and a stand-in for the API server."""

from __future__ import annotations

import shutil

import pytest
import yaml
from stand_in_api import StandInApi

from armillary.launch import Submission, cancel, find_job, list_jobs, prepare, print_log, submit
from armillary.recipe import ArmillaryError, load_training

pytestmark = pytest.mark.slow  # each command of kubectl takes half a second


@pytest.fixture
def api(tmp_path, monkeypatch):
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: apt-get install kubernetes-client")
    made = StandInApi()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made.config()))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("HOME", str(tmp_path))  # kubectl caches what a server has
    yield made
    made.close()


def wanted(run_file, nodes=2):
    path = run_file().resolve()
    folder = path.parent / "clusters"
    folder.mkdir(exist_ok=True)
    (folder / "kubernetes.yaml").write_text(
        f"image: registry/armillary:1\nvolumes: {{{path.parents[1]}: shared}}\nvariables: {{A: 'x $(B)'}}\n"
    )
    return Submission(load_training(path), path, path.parent / "large", "kubernetes", nodes)


def state(job):
    (found,), problems = list_jobs([job])
    assert problems == []
    return found


def test_submitted_listed_followed_and_cancelled(api, run_file, capfd):
    prepared = prepare(wanted(run_file))
    name = submit(prepared).job
    sent = [one for kind in ("services", "jobs") for one in api.objects[kind].values()]
    for one, written in zip(sent, yaml.safe_load_all(prepared.job.text), strict=True):
        written["metadata"]["namespace"] = "team"
        assert one == written  # kubectl passes on every field
    job = find_job(name)
    assert state(job).state == "pending"
    made = api.objects["jobs"][name]
    for number in range(7):  # of index 0, more than kubectl follows at once by default
        api.add_pod(made, f"{name}-0-{number}", "n1", "Failed" if number else "Running", f"attempt {number}\n")
    assert (state(job).state, state(job).nodes) == ("running", "n1")
    for follow in (False, True):
        capfd.readouterr()
        print_log(job, follow, print)
        assert {f"attempt {number}" for number in range(7)} <= set(capfd.readouterr().out.splitlines())
    assert cancel(job, now=False).state == "cancelled"
    assert sorted(kind for kind, _, _ in api.deleted) == ["jobs", "services"]
    assert all("gracePeriodSeconds" not in options for _, _, options in api.deleted)


def test_cancelled_at_once(api, run_file):
    name = submit(prepare(wanted(run_file))).job
    api.add_pod(api.objects["jobs"][name], f"{name}-0", "n1", "Running")
    cancel(find_job(name), now=True)
    assert sorted(kind for kind, _, _ in api.deleted) == ["jobs", "pods", "services"]
    assert {options["gracePeriodSeconds"] for _, _, options in api.deleted} == {0}


def test_a_refused_job_leaves_no_service(api, run_file):
    api.refuses["jobs"] = 'jobs.batch "large" is forbidden: exceeded quota: gpus'
    with pytest.raises(ArmillaryError, match="exceeded quota: gpus"):
        submit(prepare(wanted(run_file)))
    assert [kind for kind, _, _ in api.deleted] == ["services"] and api.objects["services"] == {}
