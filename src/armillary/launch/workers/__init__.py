"""Many runs: executors and their workers, on this machine, on a Ray cluster, or each run over many ranks."""
