"""Executors for many runs: workers on this machine, workers on a Ray cluster, or each run over many ranks."""
