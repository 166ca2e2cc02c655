"""Every kind of cluster, registered. Import the registry from here."""

from armillary.launch.clusters import kubernetes, local, ray, slurm
from armillary.launch.clusters.cluster import cluster_kinds, find_cluster

__all__ = ["cluster_kinds", "find_cluster", "kubernetes", "local", "ray", "slurm"]
