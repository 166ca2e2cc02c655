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
from test_slurm import kill_in_study, state, trainer, wait_state

from armillary.launch import find_job


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
    assert log.wait(30) == 0  # logs --follow has ended, the job has not
    assert state(name).state == "running"
    wait_for(lambda: trainer(results) is not None, "it does not train", 150)
    time.sleep(1)
    armillary("cancel", name)
    assert wait_state(name, "cancelled").attempts == 2
    second = json.loads(armillary("submit", path, "--on", "local", "--json").stdout)["job"]
    assert wait_state(second, "done", "failed").state == "done"
    assert (results / "result.json").exists() and not list(path.parent.glob("pwned"))


@pytest.mark.slow
def test_a_recipe_is_killed_restarted_and_done(recipe_file, armillary, whole_study):
    results = recipe_file.parent / "tiny"
    name = json.loads(armillary("submit", recipe_file, "--on", "local", "--json").stdout)["job"]
    kill_in_study(results)
    done = wait_state(name, "done", "failed")
    log = (find_job(name).task.place / "log.txt").read_text()
    assert done.state == "done" and done.attempts == 2, log
    print(whole_study(results), log)
