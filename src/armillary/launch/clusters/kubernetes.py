"""Jobs on Kubernetes: an Indexed Job, with a headless Service for several nodes, through kubectl.

Both objects are part of every Kubernetes, so no operator has to be installed. A pod that fails is started again, and
the pods of the other nodes stay: torchrun's agents in them wait for the new one. If pod 0 is lost, which hosts the
rendezvous, the others fail too and are started again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from armillary.launch.clusters.cluster import (
    FINAL,
    Cluster,
    ClusterKind,
    JobFile,
    Seen,
    Task,
    UnreachableError,
    call,
    register_cluster,
    send,
)
from armillary.launch.clusters.commands import (
    TORCHRUN_VARIABLES,
    check_min_nodes,
    member,
    rendezvous_port,
    supervised,
    work,
)
from armillary.launch.clusters.profiles import ClusterProfile, Count, Line, Variable, Word
from armillary.recipe import ArmillaryError, Document, UsageError

FILE = "job.yaml"
_OWNER = {"app.kubernetes.io/managed-by": "armillary"}
_SELECTOR = "app.kubernetes.io/managed-by=armillary"


class SecretKey(Document):
    """The entry ``key`` of the Secret ``name``."""

    name: Word
    key: Word


class KubernetesProfile(ClusterProfile):
    """A profile of Kubernetes: ``clusters/kubernetes.yaml``.

    ``volumes`` mounts claims (path inside: claim); file and results must be under one of the paths, also on the
    submitting machine. ``queue`` is a queue of Kueue. ``secrets`` are variables from Secrets of the cluster.
    """

    python: Line | None = "python"
    image: Word
    context: Line | None = None
    namespace: Word | None = None
    queue: Word | None = None
    volumes: dict[Word, Word] = Field(min_length=1)
    gpus_per_node: Count | None = None
    gpu_resource: Word = "nvidia.com/gpu"
    cpus_per_node: Count | None = None
    memory_gib: Count | None = None
    shared_memory_gib: Count = 8
    node_selector: dict[Word, Word] = Field(default_factory=dict)
    service_account: Word | None = None
    secrets: dict[Variable, SecretKey] = Field(default_factory=dict)
    min_nodes: Count | None = None


class Kubernetes(Cluster):
    """A cluster that kubectl reaches."""

    profile: KubernetesProfile

    def resolved(self) -> KubernetesProfile:
        """The profile with kubectl's current context and its namespace, which another command may change later."""
        profile = self.profile
        try:
            if profile.context is None:
                context = call(["kubectl", "config", "current-context"]).strip()
                profile = profile.model_copy(update={"context": context})
            if profile.namespace is None:
                view = ["config", "view", "--minify", f"--context={profile.context}", "--output=jsonpath={..namespace}"]
                profile = profile.model_copy(update={"namespace": call(["kubectl", *view]).strip() or "default"})
        except UsageError:
            raise
        except ArmillaryError:  # no kubeconfig, as in a pod, or one without a current context
            return self.profile
        return profile

    def job_file(self, task: Task, excluded: Sequence[str]) -> JobFile:
        """The objects as YAML."""
        if task.nodes > 1 and task.ranks is None:
            raise UsageError(f"--nodes {task.nodes}: a recipe runs on one node of Kubernetes; leave out --nodes")
        check_min_nodes(self.profile.min_nodes, task)
        mounts = [Path(path) for path in self.profile.volumes]
        for what, path in (("the file", task.file), ("the folder of the results", task.folder)):
            if not any(mount == path or mount in path.parents for mount in mounts):
                raise UsageError(
                    f"{path}: {what} is not in a volume of the profile ({', '.join(map(str, mounts))}), so the pods "
                    "would not see it; move it there, or add the volume"
                )
        text = "---\n".join(yaml.safe_dump(each, sort_keys=False, width=1000) for each in self.objects(task, excluded))
        return JobFile(FILE, text, tuple(self._kubectl("create", "--filename", str(task.place / FILE))))

    def objects(self, task: Task, excluded: Sequence[str]) -> list[dict[str, Any]]:
        """The Job, after its Service if it has several nodes."""
        profile, several = self.profile, task.nodes > 1
        labels = {**_OWNER, "armillary/job": task.name}
        meta: dict[str, Any] = {"name": task.name, "labels": labels}
        if profile.namespace is not None:
            meta["namespace"] = profile.namespace
        queue = {"kueue.x-k8s.io/queue-name": profile.queue} if profile.queue is not None else {}
        job: dict[str, Any] = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {**meta, "labels": {**labels, **queue}},
            "spec": {
                "completionMode": "Indexed",
                "completions": task.nodes,
                "parallelism": task.nodes,
                "backoffLimit": max(profile.max_restarts, 1) * task.nodes,
                "podFailurePolicy": {
                    "rules": [
                        # the supervisor has given up
                        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [FINAL]}},
                        # a node was drained, or a pod preempted
                        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    ]
                },
                "template": {"metadata": {"labels": labels}, "spec": self._pod(task, excluded)},
            },
        }
        if not several:
            return [job]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            # pods must find pod 0 before it is ready
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"armillary/job": task.name}},
        }
        return [service, job]

    def _pod(self, task: Task, excluded: Sequence[str]) -> dict[str, Any]:
        profile, several = self.profile, task.nodes > 1
        variables: list[dict[str, Any]] = [
            {"name": "ARMILLARY_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
        ]
        shared = {"HOME": "/tmp", **(TORCHRUN_VARIABLES if several else {})}
        if several:
            shared["PET_RDZV_ENDPOINT"] = f"{task.name}-0.{task.name}:{rendezvous_port(task.name)}"
        # Kubernetes expands $(NAME) in values and arguments, and $$ is a dollar sign.
        values = {**shared, **profile.variables}
        variables += [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]
        variables += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
            for name, secret in profile.secrets.items()
        ]
        sizes = {
            profile.gpu_resource: profile.gpus_per_node,
            "cpu": profile.cpus_per_node,
            "memory": f"{profile.memory_gib}Gi" if profile.memory_gib else None,
        }
        resources = {name: str(size) for name, size in sizes.items() if size is not None}
        part = work(task, profile, profile.min_nodes)
        whole = supervised("kubernetes", task, profile, member(task, profile, part) if several else part)
        # The first pod supervises.
        arguments = [word.replace("$", "$$") for word in whole]
        if several:
            script = 'n=$1; shift; if [ "$JOB_COMPLETION_INDEX" = 0 ]; then exec "$@"; fi; shift "$n"; exec "$@"'
            skipped = whole.index("--") + 1
            arguments = ["sh", "-c", script.replace("$", "$$"), "sh", str(skipped), *arguments]
        mounts = [{"name": f"volume-{n}", "mountPath": path} for n, path in enumerate(profile.volumes)]
        volumes: list[dict[str, Any]] = [
            {"name": f"volume-{n}", "persistentVolumeClaim": {"claimName": claim}}
            for n, claim in enumerate(profile.volumes.values())
        ]
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{profile.shared_memory_gib}Gi"}})
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": profile.stop_s,
            "containers": [
                {
                    "name": "armillary",
                    "image": profile.image,
                    "command": arguments,
                    "env": variables,
                    "resources": {"limits": resources, "requests": resources},
                    "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}],
                }
            ],
            "volumes": volumes,
        }
        if several:
            pod["subdomain"] = task.name
        if profile.node_selector:
            pod["nodeSelector"] = profile.node_selector
        if profile.service_account is not None:
            pod["serviceAccountName"] = profile.service_account
        if excluded:
            # A field takes one value, and all must hold. The label kubernetes.io/hostname may differ from the name.
            rules = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in excluded]
            terms = {"nodeSelectorTerms": [{"matchFields": rules}]}
            pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
        return pod

    def submit(self, task: Task, job: JobFile) -> str:
        """Create the objects; the job's name is its id. If the Job is refused, its Service is deleted again."""
        try:
            send(job.command)
        except UnreachableError:
            raise
        except ArmillaryError:
            with contextlib.suppress(ArmillaryError):
                call(self._delete("services", task))
            raise
        return task.name

    def seen(self, tasks: Sequence[Task]) -> dict[str, Seen]:
        """The jobs that the cluster has, with the nodes of their pods."""
        try:
            listing = call(self._kubectl("get", "jobs,pods", "--selector", _SELECTOR, "--output", "json"))
            items = json.loads(listing)["items"]
            names = {task.name for task in tasks}
            jobs = [item for item in items if item["kind"] == "Job" and item["metadata"]["name"] in names]
            pods = [item for item in items if item["kind"] == "Pod"]
            return {job["metadata"]["name"]: _seen(job, pods) for job in jobs}
        except UsageError:
            raise
        except ArmillaryError as error:
            raise UnreachableError(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreachableError(f"kubectl printed no list of jobs ({error!r})") from error

    def cancel(self, task: Task, seen: Seen, now: bool) -> None:
        """Delete the objects; the pods get SIGTERM and the time to write a checkpoint, unless it is to be ``now``."""
        if now:  # the pods of a deleted Job would still get their grace period
            call([*self._delete("jobs,services,pods", task), "--grace-period=0", "--force"])
        else:
            call(self._delete("jobs,services", task))

    def _delete(self, kinds: str, task: Task) -> list[str]:
        return self._kubectl("delete", kinds, "--selector", f"armillary/job={task.name}", "--wait=false")

    def log_command(self, task: Task, follow: bool) -> list[str]:
        """The output of the first pod, and of its earlier ones that failed."""
        selector = f"armillary/job={task.name},batch.kubernetes.io/job-completion-index=0"
        every = ["--tail=-1", "--max-log-requests=1000"]  # kubectl refuses to follow more than 5 pods by default
        return self._kubectl("logs", "--selector", selector, *every, *(["--follow"] if follow else []))

    def _kubectl(self, verb: str, *arguments: str) -> list[str]:
        where = {"context": self.profile.context, "namespace": self.profile.namespace}
        options = [f"--{name}={value}" for name, value in where.items() if value is not None]
        return ["kubectl", *options, verb, *arguments]


def _seen(job: dict[str, Any], pods: list[dict[str, Any]]) -> Seen:
    """The state of a Job object from its own status and its pods."""
    name, status = job["metadata"]["name"], job.get("status", {})
    own = [pod for pod in pods if pod["metadata"].get("labels", {}).get("armillary/job") == name]
    nodes = tuple(sorted({pod["spec"]["nodeName"] for pod in own if pod.get("spec", {}).get("nodeName")}))
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            note = condition.get("message", "") if condition["type"] == "Failed" else ""
            return Seen("ended", name, condition["type"].lower(), nodes, note)
    phases = {pod.get("status", {}).get("phase") for pod in own}
    if "Running" in phases:
        return Seen("running", name, "running", nodes)
    return Seen("pending", name, "suspended" if job["spec"].get("suspend") else "pending", nodes, _waiting(own))


def _waiting(pods: list[dict[str, Any]]) -> str:
    """Why a pod does not start: the image, or no node with room."""
    for pod in pods:
        status = pod.get("status", {})
        for container in status.get("containerStatuses") or ():
            waiting = container.get("state", {}).get("waiting")
            if waiting:
                return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
        for condition in status.get("conditions") or ():
            if condition.get("reason") == "Unschedulable":
                return str(condition.get("message") or condition["reason"])
    return ""


register_cluster("kubernetes", ClusterKind(KubernetesProfile, Kubernetes))
