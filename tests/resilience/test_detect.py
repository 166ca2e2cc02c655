"""What is found in heartbeats of life, and what is not, over whole histories of them."""

from hypothesis import given
from hypothesis import strategies as st

from armillary.resilience import Detector, Heartbeat
from armillary.resilience.detect import FIRST_S, FROZEN_S, HUNG_S, SAMPLES, STOPPED_S

RANKS, LOOK_S = 3, 0.05


class Watched:
    """Ranks in a simulated time: each step takes ``length``, and a look is taken every ``LOOK_S``."""

    def __init__(self, length=0.4):
        self.detector, self.now, self.length = Detector(), 100.0, length
        self.step, self.busy, self.begun = 0, 0, self.now
        self.silent, self.stopped = {}, []
        self.late, self.stepped = [0.0] * RANKS, [0.0] * RANKS
        self.hanging = False

    def until(self, seconds):
        """The first finding within ``seconds``, and after how many."""
        begin = self.now
        while self.now < begin + seconds:
            self.now += LOOK_S
            if not self.hanging and not self.busy and self.now >= self.begun + self.length:
                self.step, self.begun = self.step + 1, self.begun + self.length
                self.stepped = [self.begun + late for late in self.late]
            found = self.detector.look(self.heartbeats(), self.now, self.stopped)
            if found is not None:
                return found, self.now - begin
        return None, seconds

    def heartbeats(self):
        """The heartbeats at this moment."""
        return [
            Heartbeat(
                self.silent.get(rank, self.now),
                self.step if self.stepped[rank] <= self.now else self.step - 1,
                self.stepped[rank] if self.step else 0.0,
                self.busy,
                self.begun + self.late[rank] if self.step or self.busy else 0.0,
            )
            for rank in range(RANKS)
        ]

    def work(self, seconds, kind=7):
        """All ranks are busy for so long with something that is no step; the first finding."""
        self.busy, self.begun = kind, self.now
        found = self.until(seconds)[0]
        self.busy, self.begun = 0, self.now
        return found


def test_ranks_that_take_steps_are_left_alone():
    assert Watched().until(60.0) == (None, 60.0)


def test_a_rank_without_a_beat_is_named():
    watched = Watched()
    watched.until(5.0)
    watched.silent[1] = watched.now
    found, after = watched.until(30.0)
    assert (found.what, found.rank) == ("frozen", 1)
    assert FROZEN_S < after < FROZEN_S + 2 * LOOK_S


def test_a_rank_that_the_system_calls_stopped_is_named_within_a_second():
    watched = Watched()
    watched.until(5.0)
    watched.stopped = [2]
    found, after = watched.until(30.0)
    assert (found.what, found.rank) == ("frozen", 2)
    assert STOPPED_S < after < 1.0


def test_a_rank_that_was_stopped_for_a_moment_is_left_alone():
    watched = Watched()
    for _ in range(20):
        watched.stopped = [0]
        assert watched.until(STOPPED_S / 2)[0] is None
        watched.stopped = []
        assert watched.until(2 * LOOK_S)[0] is None


def test_on_a_busy_machine_beats_may_be_late():
    watched = Watched()
    for pause in (2.0, 4.0, 8.0):  # each less than three times the one before
        watched.silent = dict.fromkeys(range(RANKS), watched.now)
        assert watched.until(pause)[0] is None
        watched.silent = {}
        assert watched.until(1.0)[0] is None


@given(length=st.floats(0.1, 20.0))
def test_a_hang_is_found_after_ten_seconds_or_three_steps(length):
    watched = Watched(length)
    watched.until(6 * length)
    watched.hanging = True
    found, after = watched.until(200.0)
    limit = max(HUNG_S, 3 * (length + LOOK_S))
    assert found.what == "hung" and after <= limit + 2 * LOOK_S
    assert watched.now - watched.begun > max(HUNG_S, 3 * (length - LOOK_S))


def test_work_that_takes_longer_than_steps_has_a_limit_of_its_own():
    watched = Watched()
    watched.until(5.0)
    assert watched.work(FIRST_S / 2) is None  # the first validation, whose duration is unknown
    watched.until(5.0)
    assert watched.work(FIRST_S) is None  # twice that is not yet suspicious
    watched.until(5.0)
    assert watched.work(0.5, kind=8) is None
    watched.until(5.0)
    assert watched.work(60.0, kind=8).what == "hung"  # it is, for work that took half a second before
    watched.hanging = True
    assert watched.until(60.0)[0].what == "hung"  # and steps keep their own limit


def test_before_the_first_step_a_process_that_beats_is_starting():
    watched = Watched()
    watched.hanging = True
    assert watched.until(300.0)[0] is None


def test_a_watcher_that_was_asleep_accuses_nobody():
    watched = Watched()
    watched.until(5.0)
    begun, stopped = watched.begun, watched.now
    watched.now += 3600.0  # the whole machine slept: no rank stepped or beat, and the watcher did not look
    watched.silent = dict.fromkeys(range(RANKS), stopped)
    watched.begun = begun
    assert watched.detector.look(watched.heartbeats(), watched.now) is None
    watched.silent, watched.begun = {}, watched.now
    assert watched.until(20.0)[0] is None


def test_a_straggler_is_named_and_noise_is_not():
    watched = Watched()
    watched.late = [0.0, 0.0, 0.1]
    found, after = watched.until(200.0)
    assert (found.what, found.rank) == ("straggler", 2)
    assert after < (SAMPLES + 3) * watched.length
    watched = Watched()
    for number in range(200):  # each rank in turn is the last, by much
        watched.late = [0.2 if rank == number % RANKS else 0.0 for rank in range(RANKS)]
        assert watched.until(watched.length)[0] is None


def test_what_was_usual_is_known_after_a_restart():
    watched = Watched(length=8.0)
    watched.until(50.0)
    watched.detector.restart()
    watched.step, watched.stepped = 0, [0.0] * RANKS
    watched.begun = watched.now
    assert watched.until(50.0)[0] is None
    watched.hanging = True
    assert watched.until(20.0)[0] is None  # three times eight seconds
    assert watched.until(20.0)[0].what == "hung"
