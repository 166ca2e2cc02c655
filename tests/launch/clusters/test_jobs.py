"""Job files, records and states of jobs, without a cluster; stand-ins replace its commands only to make them fail."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from armillary.cli import main
from armillary.launch import Submission, cancel, find_job, list_jobs, prepare, print_log, read_jobs, submit
from armillary.launch.clusters import jobs as jobs_module
from armillary.launch.clusters import supervise as supervise_module
from armillary.launch.clusters.attempts import (
    NodeEnd,
    history,
    node_ends,
    progress_of,
    read_attempts,
    read_record,
    write_record,
)
from armillary.launch.clusters.cluster import FINAL, Host, UnreachableError
from armillary.launch.clusters.crashes import CRASH, LostRankError, culprits, record_crash
from armillary.launch.clusters.jobs import _unique
from armillary.launch.clusters.kubernetes import Kubernetes, KubernetesProfile
from armillary.launch.clusters.ray import Ray, RayProfile
from armillary.launch.clusters.records import records_folder
from armillary.launch.clusters.supervise import Supervisor
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, UsageError, load_training, write_sealed

SECRET = "hunter2-do-not-write"


@pytest.fixture
def wanted(run_file):
    """Prepare a submission of the large run."""

    def make(on="slurm", nodes=None, **how):
        path = run_file(**how)
        return Submission(load_training(path), path.resolve(), path.parent.resolve() / "large", on, nodes)

    return make


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A stand-in for a cluster's command: it prints a text, exits with a code, and saves its arguments and input."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name, out="", err="", code=0):
        script = folder / name
        (folder / f"{name}.out").write_text(out)
        script.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{folder}/{name}.arguments"\ncat "{folder}/{name}.out"\n'
            f"echo {shlex.quote(err)} >&2\nexit {code}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return folder / f"{name}.arguments"

    return make


@pytest.fixture
def call(capfd, monkeypatch):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["armillary", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return end.value.code, out, err

    return command


def profile(wanted, name, text):
    folder = wanted.file.parent / "clusters"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def test_the_script_of_slurm_quotes_hostile_names_and_holds_no_secret(wanted, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("ARMILLARY_DATABASE", f"postgresql://me:{SECRET}@host/db")
    request = wanted("slurm:big", nodes=2)
    profile(
        request, "slurm-big.yaml",
        "partition: gpu\naccount: me\ntime: 1-00:00:00\ngpus_per_node: 1\nenvironment: [MY_TOKEN]\nmin_nodes: 1\n"
        "setup: ['module load cuda']\nvariables: {NCCL_SOCKET_IFNAME: \"eth0 '$(x)\"}\noptions: [--reservation=a]\n",
    )  # fmt: skip
    prepared = prepare(request)
    lines = prepared.job.text.splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    for option in (
        *("--partition=gpu", "--account=me", "--time=1-00:00:00", "--nodes=2", "--gpus-per-node=1", "--requeue"),
        *("--no-kill", "--signal=B:USR1@300", "--dependency=singleton", "--reservation=a"),
    ):
        assert option in options
    assert SECRET not in prepared.job.text and "MY_TOKEN" in prepared.job.text
    assert all(" " not in option for option in options)
    words = shlex.split(lines[-1])
    assert words[:4] == ["exec", sys.executable, "-m", "armillary.launch.clusters.supervise"]
    assert str(request.file) in words and str(request.folder) in words
    assert words[words.index("--nnodes") + 1] == "1:2" and words[words.index("--min-ranks") + 1] == "1"
    assert shlex.split(next(line for line in lines if "NCCL" in line)) == ["export", "NCCL_SOCKET_IFNAME=eth0 '$(x)"]
    assert prepared.job.command[2].endswith("/log.txt") and "a%%j" in prepared.job.command[2]
    assert not request.folder.exists() and not read_jobs()[0]  # nothing is written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton: gpu\n", r"clusters/slurm.yaml:1: unknown key 'partiton'; nearest valid: 'partition'"),
        ("format: 2\n", r"slurm.yaml:1: format"),
        ("partition: 'a b'\n", r"slurm.yaml:1: partition: must be one word"),
        ("partition: a\nmax_restarts: -1\n", r"slurm.yaml:2: max_restarts"),
        ("variables: {HF_TOKEN: abc}\n", r"slurm.yaml:1: variables: HF_TOKEN looks like a secret"),
        ("variables: {A: 'postgresql://u:secret@h/d'}\n", r"variables: A looks like a secret"),
        ("environment: [A=B]\n", r"slurm.yaml:1: environment.0: must be the name"),
        ("partition: [\n", r"slurm.yaml:2: not YAML"),
        ("", r"slurm.yaml: is empty"),
        ("min_nodes: 3\n", r"min_nodes: 3 in the profile, and the job has 1"),
        ("options: ['--wrap=a\n\n b']\n", r"options.0: must be one word"),
    ],
)
def test_a_wrong_profile_is_refused_with_file_line_and_field(wanted, text, said):
    request = wanted()
    profile(request, "slurm.yaml", text)
    with pytest.raises(UsageError, match=said):
        prepare(request)


def test_what_cannot_be_submitted_is_refused(wanted, tmp_path):
    for on, nodes, said in (
        ("lsf", None, "--on lsf: not a kind of cluster; give kubernetes, local, ray, slurm"),
        ("slurm:none", None, "there is neither .*slurm-none.yaml nor .*config.*slurm-none.yaml"),
        ("slurm:../x", None, "a profile's name has letters"),
        ("local", 2, "--on local is this machine alone"),
        ("slurm", 3, "has 2 ranks, which this does not divide"),
        ("ray", 2, "does not divide a job by nodes"),
        ("kubernetes", None, "image"),
    ):
        with pytest.raises(UsageError, match=said):
            prepare(wanted(on, nodes))
    (tmp_path / "config" / "armillary" / "clusters").mkdir(parents=True)
    (tmp_path / "config" / "armillary" / "clusters" / "slurm-own.yaml").write_text("partition: own\n")
    assert "--partition=own" in prepare(wanted("slurm:own")).job.text
    with pytest.raises(UsageError, match="profiles of slurm: own"):
        prepare(wanted("slurm:other"))


def test_the_objects_of_kubernetes_fit_the_client(wanted):
    kubernetes = pytest.importorskip("kubernetes.client")
    request = wanted("kubernetes", nodes=2)
    profile(
        request, "kubernetes.yaml",
        f"image: registry/armillary:1\nnamespace: team\nqueue: lq\nvolumes: {{{request.file.parents[1]}: shared}}\n"
        "gpus_per_node: 1\nmemory_gib: 64\nsecrets: {HF_TOKEN: {name: hf, key: token}}\nnode_selector: {a: b}\n"
        "variables: {A: 'x $(B)'}\n",
    )  # fmt: skip
    prepared = prepare(request)
    service, job = yaml.safe_load_all(prepared.job.text)

    class Answer:
        def __init__(self, value):
            self.data = json.dumps(value)

    client = kubernetes.ApiClient()
    for value, kind in ((service, "V1Service"), (job, "V1Job")):
        model = client.deserialize(value if kind is None else Answer(value).data, kind, "application/json")
        # a field that the model lacks would be lost on the way
        assert client.sanitize_for_serialization(model) == value
    pod = job["spec"]["template"]["spec"]
    assert (
        service["spec"]["clusterIP"] == "None"
        and pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    )
    (container,) = pod["containers"]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}} in container["env"]
    assert job["spec"]["completions"] == 2 and container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert all("$(" not in word.replace("$$", "") for word in container["command"])
    assert {"name": "A", "value": "x $$(B)"} in container["env"]
    assert prepared.job.command[:3] == ("kubectl", "--namespace=team", "create")
    mounts = f"image: i\nvolumes: {{{request.file.parents[1]}: shared}}\n"
    profile(request, "kubernetes.yaml", f"{mounts}min_nodes: 3\n")
    with pytest.raises(UsageError, match="min_nodes: 3 in the profile, and the job has 2"):
        prepare(request)
    profile(request, "kubernetes.yaml", mounts)
    for number in (1, 2):
        write_record(request.folder / "jobs" / "old", f"attempt-{number}.json", nodes=["n1", "n2"], progress=[0, 0])
        write_record(
            request.folder / "jobs" / "old", f"attempt-{number}-end.json", ending="failed", blamed=["n1", "n2"]
        )
    pod = yaml.safe_load(prepare(wanted("kubernetes")).job.text)["spec"]["template"]["spec"]
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {  # the API takes one value of metadata.name in each
        "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("n1", "n2")]
    }
    profile(request, "kubernetes.yaml", "image: i\nvolumes: {/elsewhere: shared}\n")
    with pytest.raises(UsageError, match=r"run.yaml: the file is not in a volume of the profile \(/elsewhere\)"):
        prepare(request)


def test_a_job_is_recorded_before_it_is_submitted_and_found_again_by_name(wanted, stand_in, monkeypatch):
    stand_in("sbatch", "17\n")
    listed = stand_in("squeue")
    prepared = prepare(wanted())

    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    monkeypatch.setattr("armillary.launch.clusters.slurm.submitted", killed)
    with pytest.raises(Killed):
        submit(prepared)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{listed.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_STATE_HOME", str(listed.parent.parent / "state"))
    job = find_job(prepared.task.name)
    assert job.native is None and list_jobs([job])[0][0].state == "submitting"
    with pytest.raises(UsageError, match=f"job {prepared.task.name} of .* is submitting"):
        submit(prepare(wanted()))
    stand_in("squeue", f"17|{prepared.task.name}|PENDING|Resources||1\n18|other|RUNNING|None|n1|1\n")
    (state,), _ = list_jobs([job])
    assert (state.state, state.native, state.note) == ("pending", "17", "Resources")
    assert find_job(prepared.task.name).native == "17"  # recorded now
    with pytest.raises(UsageError, match=f"job {prepared.task.name} of .* is pending; `armillary logs"):
        submit(prepare(wanted()))
    stand_in("squeue")
    assert list_jobs([find_job("17")])[0][0].state == "lost"
    monkeypatch.setattr(jobs_module, "_ARRIVES_S", -1)
    (Path(os.environ["XDG_STATE_HOME"]) / "armillary" / "jobs" / prepared.task.name / "submitted.json").unlink()
    assert list_jobs(read_jobs()[0])[0][0].state == "not submitted"
    assert submit(prepare(wanted())).native == "17"


@pytest.mark.parametrize(
    ("out", "err", "code", "said"),
    [
        ("Submitted batch job 17\n", "", 0, "sbatch printed no job id: 'Submitted batch job 17'"),
        ("", "", 0, "sbatch printed no job id: ''"),
        ("", "Batch job submission failed: Socket timed out on send/recv operation", 1, "sbatch: .*timed out on send"),
    ],
)
def test_a_submission_that_may_have_arrived_is_not_refused(wanted, stand_in, monkeypatch, out, err, code, said):
    stand_in("squeue")
    stand_in("sbatch", out, err, code)
    with pytest.raises(UnreachableError, match=f"{said}.*; `armillary jobs` shows in 60 s whether slurm has job large"):
        submit(prepare(wanted()))
    (job,), _ = read_jobs()
    assert list_jobs([job])[0][0].state == "submitting"
    stand_in("squeue", f"17|{job.task.name}|RUNNING|None|n1|1\n")
    with pytest.raises(UsageError, match="is running"):
        submit(prepare(wanted()))
    stand_in("squeue")
    (records_folder() / job.task.name / "submitted.json").unlink()
    monkeypatch.setattr(jobs_module, "_ARRIVES_S", -1)
    stand_in("sbatch", "18\n")
    assert submit(prepare(wanted())).native == "18"


def test_a_refused_submission_is_recorded_and_does_not_block(wanted, stand_in):
    stand_in("squeue")
    stand_in("sbatch", "", "sbatch: error: invalid partition specified: gpu", 1)
    with pytest.raises(ArmillaryError, match="sbatch: sbatch: error: invalid partition"):
        submit(prepare(wanted()))
    (state,), problems = list_jobs(read_jobs()[0])
    assert state.state == "refused" and "invalid partition" in state.note and problems == []
    stand_in("sbatch", "17;cluster\n")
    assert submit(prepare(wanted())).native == "17"


def test_without_the_commands_of_the_cluster(wanted, monkeypatch, call, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    request = wanted()
    code, _, err = call("submit", request.file, "--on", "slurm")
    assert code == 2 and "sbatch: no such command; run this on a machine that has the cluster's commands" in err
    assert call("jobs")[0] == 0


def test_a_silent_cluster_leaves_the_others_known(wanted, stand_in, call):
    stand_in("sbatch", "17\n")
    stand_in("squeue")
    name = submit(prepare(wanted())).job
    stand_in("squeue", err="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    write_record(find_job(name).task.place, "attempt-1.json", nodes=["n1"], progress=[0, 0], native="17")
    other = prepare(wanted("local", folder="other"))
    other.task.place.mkdir(parents=True)
    jobs_module.plan(other.task, "local", other.profile, ())
    write_record(other.task.place, "end.json", state="done", exit=0, why="")
    damaged = Path(os.environ["XDG_STATE_HOME"]) / "armillary" / "jobs" / "damaged"
    damaged.mkdir()
    (damaged / "planned.json").write_text('{"format": 1')
    code, out, err = call("jobs", "--json")
    rows = {row["job"]: row for row in json.loads(out)}
    assert code == 0 and rows[name]["state"] == "unknown" and "Unable to contact" in rows[name]["note"]
    assert rows[other.task.name]["state"] == "done" and rows[other.task.name]["exit"] == 0
    assert "slurm: squeue: " in err and "damaged/planned.json" in err
    code, _, err = call("submit", wanted().file, "--on", "slurm")
    assert code == 2 and f"job {name}" in err and "may still run" in err
    code, _, err = call("cancel", name)
    assert code == 1 and "cannot be cancelled now: slurm" in err
    stand_in("squeue", "what|is|this\n")
    assert list_jobs([find_job(name)])[0][0].state == "unknown"
    assert call("logs", "nothing")[2].count("no job of this name or id") == 1
    assert "there is no log yet" in call("logs", name)[2]


@pytest.mark.parametrize("name", ["planned.json", "submitted.json"])
def test_a_damaged_record_of_a_running_job_refuses_a_second_one(wanted, stand_in, name, call):
    stand_in("sbatch", "17\n")
    stand_in("squeue")
    job = submit(prepare(wanted())).job
    stand_in("squeue", f"17|{job}|RUNNING|None|n1|1\n")
    (records_folder() / job / name).write_text('{"format": 1')
    code, _, err = call("submit", wanted().file, "--on", "slurm")
    assert code == 2 and f"job {job} of " in err and "may still run, because its record cannot be read" in err
    assert f"{name}: record of a job cannot be read" in err and f"move {records_folder() / job} away" in err
    code, _, err = call("cancel", job[:-4])
    assert code == 1 and f"{name}: record of a job cannot be read" in err
    assert submit(prepare(wanted(folder="other"))).native == "17"  # other results
    write_record(find_place(wanted, job), "end.json", state="done", exit=0, why="")
    assert submit(prepare(wanted())).native == "17"  # that job has ended


def find_place(wanted, job):
    return wanted().folder / "jobs" / job


def test_a_folder_without_a_record_is_no_job(wanted, stand_in, call):
    stand_in("squeue")
    (records_folder() / "large-0").mkdir(parents=True)  # killed before the record was written
    assert call("cancel", "large-0")[0] == 2


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("planned.json", "cancel.json"),
        ("submitted.json", "refused.json"),
        ("attempt-1.json", "attempt-1-end.json"),
        ("attempt-1.json", "attempt-2.json"),
        ("end.json", "attempt-1-end.json"),
    ],
)
def test_a_record_in_the_place_of_another_is_refused(name, other, tmp_path):
    place = tmp_path / "large-1"
    write_record(place, other, file="f", folder="d", nodes=["n1"], native="17", why="", state="done", exit=0)
    (place / other).rename(place / name)
    with pytest.raises(ForeignFileError, match=f"large-1/{name}: is the record {other} of job large-1"):
        read_record(place, name)
    (place / name).rename(tmp_path / "kept")
    (tmp_path / "large-2").mkdir()
    write_record(place, name)
    (place / name).rename(tmp_path / "large-2" / name)
    with pytest.raises(ForeignFileError, match=f"large-2/{name}: is the record {name} of job large-1"):
        read_record(tmp_path / "large-2", name)


def test_records_of_the_first_format_are_read_and_a_wrong_one_is_damaged(wanted, stand_in):
    stand_in("squeue")
    place = wanted().folder / "jobs" / "large-1"
    old = {"format": 1, "time_s": 1.0}
    planned = {**old, "kind": "slurm", "profile": {}, "excluded": [], "file": str(wanted().file)}
    planned |= {"folder": str(wanted().folder), "nodes": 1, "ranks": 2}
    write_sealed(records_folder() / "large-1" / "planned.json", planned)
    write_sealed(records_folder() / "large-1" / "submitted.json", {**old, "native": "17"})
    write_sealed(place / "attempt-1.json", {**old, "nodes": ["n1"], "progress": [0, 0], "native": "17"})
    write_sealed(place / "attempt-1-end.json", {**old, "ending": "failed", "exit": 137, "blamed": ["n1"]})
    (job,), problems = read_jobs()
    assert job.native == "17" and problems == {} and read_attempts(place)[0].blamed == ("n1",)
    write_sealed(place / "end.json", {**old, "exit": 0})  # that of an attempt
    assert list_jobs([job])[0][0].state == "lost"
    write_sealed(records_folder() / "large-1" / "planned.json", old)
    assert "has no field" in read_jobs()[1]["large-1"]
    with pytest.raises(DamagedFileError, match="has no field"):
        find_job("large-1")


def test_records_that_vanish_while_they_are_listed_are_left_out(tmp_path, monkeypatch):
    place = tmp_path / "jobs" / "large-1"
    for number in (1, 2):
        write_record(place, f"attempt-{number}.json", nodes=["a", "b"], progress=[0, 0], native="17")
        write_record(place, f"attempt-{number}-began-a.json")
        write_record(place, f"attempt-{number}-ended-a.json", exit=1)
    found = list(place.glob("*"))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [file for file in found if file.match(pattern)])
    assert [end.code for end in node_ends(place, 1)] == [1]
    for file in found:
        file.unlink()
    assert read_attempts(place) == [] and node_ends(place, 1) == []
    monkeypatch.undo()
    assert history(tmp_path) == []


def test_the_list_of_kubectl_is_read(wanted, stand_in):
    request = wanted("kubernetes")
    profile(
        request,
        "kubernetes.yaml",
        f"image: i\ncontext: c\nnamespace: n\nvolumes: {{{request.file.parents[1]}: shared}}\n",
    )
    stand_in("kubectl", '{"items": []}')
    name = submit(prepare(request)).job
    assert list_jobs(read_jobs()[0])[0][0].state == "lost"
    meta = {"name": name, "labels": {"armillary/job": name}}
    job = {"kind": "Job", "metadata": meta, "spec": {}, "status": {"active": 1}}
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}}
    pod = {"kind": "Pod", "metadata": {**meta, "name": "p"}, "spec": {"nodeName": "n1"},
           "status": {"phase": "Pending", "containerStatuses": [waiting]}}  # fmt: skip
    stand_in("kubectl", json.dumps({"items": [job, pod]}))
    (state,), _ = list_jobs(read_jobs()[0])
    assert (state.state, state.note) == ("pending", "ImagePullBackOff: no image")
    pod["status"] = {"phase": "Running"}
    stand_in("kubectl", json.dumps({"items": [job, pod]}))
    (state,), _ = list_jobs(read_jobs()[0])
    assert (state.state, state.nodes) == ("running", "n1")
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "too many pods failed"}]}
    stand_in("kubectl", json.dumps({"items": [job]}))
    (state,), _ = list_jobs(read_jobs()[0])
    assert (state.state, state.note) == ("lost", "too many pods failed")
    for out, err, code in (("<html>", "", 0), ('{"items": 3}', "", 0), ("", "refused", 1)):
        stand_in("kubectl", out, err, code)
        assert list_jobs(read_jobs()[0])[0][0].state == "unknown"


def test_kubectl_ends_pods_at_once_and_leaves_no_service_of_a_refused_job(wanted, stand_in):
    request = wanted("kubernetes")
    profile(
        request,
        "kubernetes.yaml",
        f"image: i\ncontext: c\nnamespace: n\nvolumes: {{{request.file.parents[1]}: shared}}\n",
    )
    arguments = stand_in("kubectl", '{"items": []}', "quota exceeded", 1)
    with pytest.raises(ArmillaryError, match="quota exceeded"):
        submit(prepare(request))
    said = arguments.read_text().splitlines()
    assert said[said.index("delete") + 1] == "services"
    assert list_jobs(read_jobs()[0])[0][0].state == "refused"
    stand_in("kubectl", "", "Unable to connect to the server: net/http: TLS handshake timeout", 1)
    with pytest.raises(UnreachableError, match="handshake timeout"):
        submit(prepare(request))
    (first, _), _ = read_jobs()
    assert first.refused is None
    meta = {"name": first.task.name, "labels": {"armillary/job": first.task.name}}
    stand_in("kubectl", json.dumps({"items": [{"kind": "Job", "metadata": meta, "spec": {}, "status": {}}]}))
    arguments.unlink()
    cancel(first, now=True)
    said = arguments.read_text().splitlines()
    assert said[said.index("delete") + 1] == "jobs,services,pods" and "--grace-period=0" in said


def test_who_caused_a_failure():
    ends = [NodeEnd("a", 1, 20.0), NodeEnd("b", 1, 10.0)]
    assert culprits(["a"], []) == (("a",), "")
    assert culprits(["a", "b"], []) == ((), "")  # stopped from outside
    assert culprits(["a", "b"], ends) == (("b",), "")
    assert culprits(["a", "b"], [ends[0], NodeEnd("b", None)]) == (("b",), "")  # b ended without a record
    assert culprits(["a", "b"], [NodeEnd("a", 0, 1.0), NodeEnd("b", 0, 1.0)]) == ((), "")


@pytest.mark.parametrize(
    ("code", "crash", "is_node", "found"),
    [
        (137, "", True, ""),  # killed from outside
        (139, "", True, "signal 11"),
        (1, "signal 6", True, "signal 6"),  # of a rank
        (1, "", True, ""),  # it could not even start
        (1, "ValueError: x", False, "ValueError: x"),
        (1, "torch.OutOfMemoryError: x", False, "torch.OutOfMemoryError: x"),
        (1, "torch.AcceleratorError: CUDA error: uncorrectable ECC error", True, None),
        (1, "OSError: [Errno 5] Input/output error: '/data/x'", True, None),
        (1, "OSError: [Errno 28] No space left on device", False, None),
    ],
)
def test_an_error_of_the_program_is_no_fault_of_its_node(code, crash, is_node, found):
    blamed, why = culprits(["a"], [NodeEnd("a", code, 1.0, crash)])
    assert blamed == (("a",) if is_node else ()) and why == (crash if found is None else found)
    other = [NodeEnd("b", 1, 2.0), NodeEnd("a", code, 1.0, crash)]  # the node that failed first
    assert culprits(["a", "b"], other)[0] == blamed


def test_the_error_of_a_job_is_recorded_without_a_password(tmp_path, monkeypatch):
    record_crash(ValueError("outside a job"))
    for number, (error, crash) in enumerate(
        [
            (ValueError("postgresql://me:hunter2@h/d\nx"), "ValueError: postgresql://me:***@h/d x"),
            (LostRankError("rank 1 died", "IndexError: 3"), "IndexError: 3"),
            (LostRankError("rank 1 froze"), None),
            (ArmillaryError("x" * 500), "armillary.recipe.errors.ArmillaryError: " + "x" * 160),
        ]
    ):
        monkeypatch.setenv(CRASH, str(tmp_path / f"attempt-{number}-crash-a.json"))
        record_crash(error)
        found = read_record(tmp_path, f"attempt-{number}-crash-a.json")
        assert (found and found["crash"]) == crash
    monkeypatch.setenv(CRASH, str(tmp_path / "file" / "x.json"))
    (tmp_path / "file").touch()
    record_crash(ValueError("cannot be recorded"))


def test_a_job_whose_program_fails_excludes_no_node(wanted, monkeypatch):
    """The supervisor with the real command line as its work."""
    monkeypatch.setattr(supervise_module, "_PAUSE_S", 0.0)
    place = wanted().folder / "jobs" / "large-1"
    place.mkdir(parents=True)
    program = "from armillary.cli import guarded; import sys; sys.exit(guarded(lambda: [][1]))"
    code = Supervisor(place, 1, Host()).supervise([sys.executable, "-c", program])
    assert code == FINAL
    attempts = read_attempts(place)
    assert [attempt.blamed for attempt in attempts] == [(), ()]
    assert {attempt.crash for attempt in attempts} == {"IndexError: list index out of range"}
    assert prepare(wanted()).excluded == ()


def test_progress_counts_results_and_steps(tmp_path):
    assert progress_of(tmp_path) == (0, 0)
    (tmp_path / "store" / "runs" / "a" / "checkpoints" / "step-20").mkdir(parents=True)
    (tmp_path / "store" / "runs" / "a" / "checkpoints" / "step-7.damaged").mkdir()
    (tmp_path / "store" / "runs" / "b").mkdir()
    (tmp_path / "store" / "runs" / "b" / "result.json").touch()
    assert progress_of(tmp_path) == (1, 20)


@pytest.mark.parametrize("name", ["Ä ö", "x" * 80, "3rd", "a/../b", "$(rm)"])
def test_a_job_name_fits_every_cluster(name):
    made = _unique(name)
    assert made[0].isalpha() and len(made) <= 42 and set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_log_is_followed_in_pieces_and_ends_with_the_job(wanted, stand_in, monkeypatch):
    stand_in("sbatch", "17\n")
    stand_in("squeue")
    job = find_job(submit(prepare(wanted())).job)
    stand_in("squeue", f"17|{job.task.name}|RUNNING|None|n1|1\n")
    log, said = job.task.place / "log.txt", []
    log.write_bytes("浑".encode()[:2])

    def write(text):
        said.append(text)
        if text.endswith("one\n"):
            write_record(job.task.place, "end.json", state="done", exit=0, why="")
            log.write_bytes(log.read_bytes() + b"two\n")

    monkeypatch.setattr(jobs_module, "_LOOK_S", 0.01)
    with log.open("ab") as file:
        file.write("浑".encode()[2:] + b"one\n")
    print_log(job, True, write)
    assert "".join(said) == "浑one\ntwo\n"


def test_a_character_in_two_pieces_of_a_log_is_whole(wanted, stand_in, monkeypatch):
    stand_in("sbatch", "17\n")
    stand_in("squeue")
    job = find_job(submit(prepare(wanted())).job)
    log, said, left = job.task.place / "log.txt", [], ["天仪".encode()[2:] + b"\xe4"]
    stand_in("squeue", f"17|{job.task.name}|RUNNING|None|n1|1\n")
    log.write_bytes("天仪".encode()[:2])

    def write(text):
        said.append(text)
        if left:
            with log.open("ab") as file:
                file.write(left.pop())
        elif not read_record(job.task.place, "end.json"):
            write_record(job.task.place, "end.json", state="done", exit=0, why="")

    monkeypatch.setattr(jobs_module, "_LOOK_S", 0.01)
    print_log(job, True, write)
    assert "".join(said) == "天仪\ufffd"  # only what the log itself cuts is replaced


@pytest.mark.parametrize(
    ("end", "said"),
    [("failed", "is failed: no progress"), ("cancelled", "is cancelled: no progress"), (None, "is lost")],
)
def test_a_followed_log_states_an_end_that_is_no_success(wanted, stand_in, monkeypatch, call, end, said):
    monkeypatch.setattr(jobs_module, "_LOOK_S", 0.01)
    stand_in("sbatch", "17\n")
    stand_in("squeue")
    job = find_job(submit(prepare(wanted())).job)
    (job.task.place / "log.txt").write_text("step 1\n")
    if end is not None:
        write_record(job.task.place, "end.json", state=end, exit=1, why="no progress")
    code, out, err = call("logs", job.task.name, "--follow")
    assert code == 1 and out == "step 1\n" and f"job {job.task.name} {said}" in err
    assert call("logs", job.task.name)[0] == 0


def test_a_foreign_job_whose_name_has_the_separator(wanted, stand_in):
    stand_in("sbatch", "17\n")
    squeue = stand_in("squeue")
    name = submit(prepare(wanted())).job
    (squeue.parent / "squeue").write_text(  # as squeue, it lists only the names that it was given
        "#!/bin/sh\ncase \"$*\" in *--name=*) ;; *) echo '9|a|b|RUNNING|None|n1|1'; echo '8|a'; echo 'b|c' ;; esac\n"
        f"case \"$*\" in *{name}*) echo '17|{name}|RUNNING|None|n1|1' ;; esac\n"
    )
    (state,), problems = list_jobs([find_job(name)])
    assert problems == [] and (state.state, state.native) == ("running", "17")


def test_a_job_that_was_submitted_again_has_its_new_id(wanted, stand_in, call):
    stand_in("sbatch", "17\n")
    stand_in("squeue")
    name = submit(prepare(wanted())).job
    stand_in("squeue", f"17|{name}|NODE_FAIL|None|n1|1\n18|{name}|RUNNING|None|n2|1\n")
    assert find_job("18").task.name == name  # before any other command has seen the new id
    code, out, _ = call("jobs", "--json")
    assert code == 0 and json.loads(out)[0]["native"] == "18"
    assert call("cancel", "18")[0] == 0
    stand_in("squeue")
    assert find_job("18").native == "18"


def test_clusters_that_cannot_exclude_nodes_do_not_claim_it(wanted, call):
    for on in ("local", "ray"):
        request = wanted(on, folder=on)
        old = request.folder / "jobs" / "old"
        for number in (1, 2):
            write_record(old, f"attempt-{number}.json", nodes=["n1"], progress=[0, 0])
            write_record(old, f"attempt-{number}-end.json", ending="failed", blamed=["n1"])
        assert prepare(request).excluded == ()
        assert prepare(Submission(request.document, request.file, request.folder, "slurm")).excluded == ("n1",)
        job = prepare(request)
        jobs_module.plan(job.task, on, job.profile, ())
        write_record(job.task.place, "end.json", state="done", exit=0, why="")
    assert all(row["excluded"] == [] for row in json.loads(call("jobs", "--json")[1]))


def test_the_place_of_a_job_is_fixed_when_it_is_submitted(wanted, stand_in, monkeypatch):
    request = wanted("kubernetes")
    profile(request, "kubernetes.yaml", f"image: i\nvolumes: {{{request.file.parents[1]}: shared}}\n")
    arguments = stand_in("kubectl")
    (arguments.parent / "kubectl").write_text(
        f'#!/bin/sh\necho "$*" >> "{arguments}"\n'
        'case "$*" in *current-context*) echo big ;; *view*) echo team ;; *) echo \'{"items": []}\' ;; esac\n'
    )
    submit(prepare(request))
    sent = arguments.read_text().splitlines()
    assert any(line.startswith("--context=big --namespace=team create") for line in sent)
    (job,), _ = read_jobs()
    assert (job.profile["context"], job.profile["namespace"]) == ("big", "team")
    stand_in("kubectl", "", "error: current-context is not set", 1)  # in a pod
    kept = prepare(request).profile
    assert KubernetesProfile.model_validate(kept.model_dump()) == Kubernetes(kept).resolved()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert Ray(RayProfile()).resolved().address == "http://head:8265"


@pytest.mark.parametrize(
    ("setup", "failed"),
    [
        (["f() { false; return 3; }", "f cuda"], "f cuda failed with exit code 3"),
        (["nosuchcommand 'a b'"], "nosuchcommand 'a b' failed with exit code 127"),
        (["false || true", "if false; then", "exit 9", "fi", ". ./sourced.sh"], None),
    ],
)
def test_a_setup_that_fails_ends_the_job_with_its_line(wanted, stand_in, tmp_path, setup, failed):
    """The script in bash, with a stand-in for the interpreter."""
    stand_in("interpreter")
    (tmp_path / "sourced.sh").write_text("false\ntrue\n")
    request = wanted()
    profile(request, "slurm.yaml", yaml.safe_dump({"setup": setup, "python": "interpreter"}))
    job = prepare(request)
    (tmp_path / "job.sbatch").write_text(job.job.text)
    done = subprocess.run(["bash", "job.sbatch"], cwd=tmp_path, capture_output=True, text=True, check=False)
    words = (tmp_path / "bin" / "interpreter.arguments").read_text().splitlines()
    assert words[:3] == ["-m", "armillary.launch.clusters.supervise", "slurm"]
    if failed is None:
        assert words[-1] != "exit 2" and "error setup" not in done.stderr
    else:
        assert (
            words[-3:] == ["sh", "-c", "exit 2"] and f"error setup: {failed}" in done.stderr
        )  # exit code of wrong usage
