"""Jobs on clusters: a job file for each kind of cluster, the records of submitted jobs, and the process that runs one.

A new cluster is one file that calls ``register_cluster``.
"""
