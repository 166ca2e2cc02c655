"""A study as a separate program, so that it can be killed and interrupted: STORE CORPUS SPEC.json..."""

import os
import sys
from pathlib import Path

from armillary.cli import guarded
from armillary.launch import Job, LocalExecutor
from armillary.recipe import RunSpec
from armillary.store import Store


def study() -> None:
    """Carry out the given runs on two workers, whose process ids are printed first."""
    store, corpus, *specs = map(Path, sys.argv[1:])
    jobs = [Job(RunSpec.model_validate_json(path.read_bytes())) for path in specs]
    database = os.environ.get("ARMILLARY_DATABASE")
    with LocalExecutor(Store(store, database), corpus, 2, checkpoint_every_s=0.05) as executor:
        executor._start_workers()
        print(*[worker.process.pid for worker in executor._workers], flush=True)
        executor.run("study", jobs)


if __name__ == "__main__":
    sys.exit(guarded(study))
