"""A job on this machine as a real process: killed, restarted, followed, cancelled and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from real_slurm import wait_for
from test_slurm import state, trainer, wait_state


@pytest.mark.slow
def test_killed_restarted_cancelled_and_resumed(run_file, armillary):
    path = run_file(steps=700, every_steps=50)
    results = path.parent / "large"
    name = json.loads(armillary("submit", path, "--on", "local", "--json").stdout)["job"]
    assert name in armillary("submit", path, "--on", "local", check=False).stderr
    log = subprocess.Popen([sys.executable, "-m", "armillary", "logs", name, "--follow"], stdout=subprocess.PIPE)
    wait_for(lambda: any(results.glob("checkpoints/step-*")), "no checkpoint", 150)
    os.kill(trainer(results), signal.SIGKILL)
    wait_for(lambda: state(name).attempts == 2, "it is not restarted", 150)
    log.send_signal(signal.SIGINT)
    assert log.wait(30) == 0  # following has ended, the job has not
    assert state(name).state == "running"
    wait_for(lambda: trainer(results) is not None, "it does not train", 150)
    time.sleep(1)
    armillary("cancel", name)
    assert wait_state(name, "cancelled").attempts == 2
    second = json.loads(armillary("submit", path, "--on", "local", "--json").stdout)["job"]
    assert wait_state(second, "done", "failed").state == "done"
    assert (results / "result.json").exists() and not list(path.parent.glob("pwned"))
