"""Heartbeats cross from one process to another, and stop with the one that gave them."""

import multiprocessing
import os
import signal
import time

from armillary.resilience import Heartbeats


def live(heartbeat, ready):
    heartbeat.start()
    heartbeat.step(7)
    heartbeat.busy("Validate")
    ready.set()
    time.sleep(60)


def test_heartbeats_reach_another_process_and_stop_with_a_stopped_one():
    context = multiprocessing.get_context("forkserver")
    heartbeats, ready = Heartbeats(context, 2), context.Event()
    process = context.Process(target=live, args=(heartbeats.writer(1), ready), daemon=True)
    process.start()
    try:
        assert ready.wait(60)
        none, heartbeat = heartbeats.read()
        assert (none.beat_s, none.step, none.busy) == (0.0, 0, 0)
        assert heartbeat.step == 7 and heartbeat.busy > 0 and heartbeat.changed_s >= heartbeat.stepped_s > 0
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.2)
        before = heartbeats.read()[1].beat_s
        time.sleep(0.5)
        assert heartbeats.read()[1].beat_s == before
        os.kill(process.pid, signal.SIGCONT)
        end = time.monotonic() + 60
        while heartbeats.read()[1].beat_s == before:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    heartbeats.clear()
    assert heartbeats.read()[1].step == 0
