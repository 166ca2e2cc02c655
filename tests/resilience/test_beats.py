"""Signs of life cross from one process to another, and stop with the one that gave them."""

import multiprocessing
import os
import signal
import time

from armillary.resilience import Beats


def live(pulse, ready):
    pulse.start()
    pulse.step(7)
    pulse.busy("Validate")
    ready.set()
    time.sleep(60)


def test_signs_reach_another_process_and_stop_with_a_stopped_one():
    context = multiprocessing.get_context("forkserver")
    beats, ready = Beats(context, 2), context.Event()
    process = context.Process(target=live, args=(beats.pulse(1), ready), daemon=True)
    process.start()
    try:
        assert ready.wait(60)
        none, sign = beats.signs()
        assert (none.beat_s, none.step, none.busy) == (0.0, 0, 0)
        assert sign.step == 7 and sign.busy > 0 and sign.changed_s >= sign.stepped_s > 0
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.2)
        before = beats.signs()[1].beat_s
        time.sleep(0.5)
        assert beats.signs()[1].beat_s == before
        os.kill(process.pid, signal.SIGCONT)
        end = time.monotonic() + 60
        while beats.signs()[1].beat_s == before:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    beats.clear()
    assert beats.signs()[1].step == 0
