"""A lone call is handed to an idle worker by its caller, and nobody can tell."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import pytest
from tests.gates import eventually
from tests.scale import scaled

from taskloom import _current
from taskloom._engine.short_cut import MAX_FRAME_BYTES, Offer, ShortCut
from taskloom._pool.transport import Channel


@pytest.fixture
def inc(tl):
    """A function that is known to be short: its lone calls go the short way."""
    f = tl.remote(max_retries=0)(lambda n: n + 1)
    tl.get([f.remote(n) for n in range(50)])
    assert is_offered(tl, f, 1)
    return f


def short_cut() -> ShortCut:
    return _current.require()._short_cut


def is_offered(tl, f, *args) -> bool:
    """Calls a function until the engine offers to take the next call of it the short way.

    One call that was kept from running by other processes makes it look long for a while.
    """

    def calls() -> bool:
        tl.get(f.remote(*args), timeout=20)
        return short_cut().shown is not None

    return eventually(calls)


def all_is_given_back(tl) -> bool:
    return eventually(lambda: tl.available_resources().get("CPU") == 2.0)


def test_lone_calls_go_the_short_way_and_have_their_results(tl, inc):
    before = short_cut().taken
    assert [tl.get(inc.remote(n)) for n in range(200)] == list(range(1, 201))
    assert short_cut().taken > before
    assert all_is_given_back(tl)


def test_other_calls_go_the_long_way(tl, inc):
    five = tl.put(5)
    assert is_offered(tl, inc, 1)
    before = short_cut().taken
    assert tl.get(inc.remote(five)) == 6, "it depends on an object"
    assert tl.get(tl.remote(lambda n: n - 1).remote(5)) == 4, "another function"
    assert short_cut().taken == before
    big = tl.remote(len)
    tl.get([big.remote(b"x") for _ in range(50)])
    assert is_offered(tl, big, b"x")
    long_way = short_cut().taken
    assert tl.get(big.remote(bytes(MAX_FRAME_BYTES))) == MAX_FRAME_BYTES, "it is too large"
    assert short_cut().taken == long_way


def test_a_program_that_asks_for_no_results_is_offered_nothing_until_it_does(tl, inc):
    refs = []

    def takes_the_offer() -> bool:  # an engine that has just something to do withdraws it
        assert is_offered(tl, inc, 1)
        refs.append(inc.remote(1))
        return not short_cut().is_fetched

    assert eventually(takes_the_offer)
    first = refs[-1]
    assert eventually(lambda: first._record.outcome is not None)
    assert tl.available_resources()["CPU"] == 2  # the engine has been here since, and rests
    taken = short_cut().taken
    second = inc.remote(2)
    assert tl.get([first, second]) == [2, 3]
    assert short_cut().taken == taken
    assert is_offered(tl, inc, 1)


def test_what_is_submitted_behind_it_finds_it_in_the_books(tl, inc):
    for n in range(100):
        first = inc.remote(n)
        second = inc.remote(first)
        third = inc.remote(n)
        assert tl.get([first, second, third]) == [n + 1, n + 2, n + 1]
    assert all_is_given_back(tl)


def test_a_call_that_was_handed_over_can_be_cancelled(tl, inc, tmp_path):
    mark = tmp_path / "started"

    def may_stay(long):
        if long:
            mark.touch()
            threading.Event().wait()

    f = tl.remote(may_stay)
    for _ in range(20):
        tl.get([f.remote(False) for _ in range(50)])  # it is known to be short again
        assert is_offered(tl, f, False)
        ref = f.remote(True)
        tl.cancel(ref)
        with pytest.raises(tl.exceptions.TaskCancelledError):
            tl.get(ref, timeout=20)
        assert all_is_given_back(tl)
    assert short_cut().taken > 20


def test_threads_that_want_one_worker_all_get_their_results(tl, inc):
    wrong = []

    def call(start):
        numbers = range(start, start + scaled(300))
        wrong.extend(n for n in numbers if tl.get(inc.remote(n)) != n + 1)

    threads = [threading.Thread(target=call, args=(k * 10_000,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all_is_given_back(tl)


def test_threads_and_tasks_that_want_one_actor_all_get_their_results(tl):
    register = tl.remote(Register).remote()
    tl.get([register.note.remote(n) for n in range(50)])
    wrong = []

    def call(start):
        numbers = range(start, start + scaled(200))
        wrong.extend(n for n in numbers if tl.get(register.note.remote(n)) != n)

    @tl.remote
    def task(register, start):
        import taskloom

        numbers = range(start, start + 100)
        return [taskloom.get(register.note.remote(n)) for n in numbers] == list(numbers)

    threads = [threading.Thread(target=call, args=(k * 10_000,)) for k in range(3)]
    for thread in threads:
        thread.start()
    assert tl.get([task.remote(register, k * 100) for k in range(5)], timeout=60) == [True] * 5
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_worker_that_dies_meanwhile_costs_a_call_nothing(tl, inc):
    """It has not begun: also a call that may not run twice has its result."""
    pid_of = tl.remote(lambda: os.getpid())
    for n in range(scaled(30)):
        tl.get([pid_of.remote() for _ in range(5)])
        pid = tl.get(pid_of.remote())
        assert is_offered(tl, inc, 1)
        os.kill(pid, signal.SIGKILL)
        assert tl.get(inc.remote(n), timeout=20) == n + 1
    assert all_is_given_back(tl)


def strike_in_sending(tl, f, monkeypatch, strike) -> bool:
    """Makes a call; ``strike`` is what happens when it sends it.  False: it went the long way."""
    assert is_offered(tl, f, 1)
    struck = []

    def send_whole(self, frame):
        struck.append(frame)
        strike(self, frame)

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "send_whole", send_whole)
        try:
            assert tl.get(f.remote(1), timeout=20) == 2
        except KeyboardInterrupt:
            pass
    return bool(struck)


def test_nothing_is_kept_of_a_worker_that_is_gone(tl, inc):
    """It may have been sent large arguments."""
    tl.get(inc.remote(1))
    used = short_cut().used  # the worker of this call, or another one that has just started
    assert used is not None
    gone, pid = weakref.ref(used), used.pid
    del used
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: gc.collect() >= 0 and gone() is None)


@pytest.mark.parametrize("sent", [False, True])
def test_ctrl_c_in_the_middle_leaves_no_worker_occupied(tl, inc, monkeypatch, sent):
    send_whole = Channel.send_whole

    def interrupted(self, frame):
        if sent:
            send_whole(self, frame)
        raise KeyboardInterrupt

    def is_hit() -> bool:
        hit = strike_in_sending(tl, inc, monkeypatch, interrupted)
        assert all_is_given_back(tl)
        assert tl.get(inc.remote(1), timeout=20) == 2
        return hit

    for _ in range(5):
        assert eventually(is_hit)


@pytest.mark.parametrize("error", [BlockingIOError, BrokenPipeError])
def test_a_worker_that_takes_nothing_now_gets_the_call_from_the_engine(tl, inc, monkeypatch, error):
    def full(_self, _frame):
        raise error

    # On a busy machine most calls go the long way.
    assert eventually(lambda: strike_in_sending(tl, inc, monkeypatch, full))
    assert all_is_given_back(tl)


def test_of_two_who_want_one_offer_one_gets_it(tl, inc, monkeypatch):
    """The other one stands before him in the inbox."""
    take, others = Offer.take, []

    def take_second(self, taker):
        if not others and threading.current_thread() is threading.main_thread():
            others.append(None)
            others.append(inc.remote(10))
        return take(self, taker)

    def is_hit() -> bool:
        assert is_offered(tl, inc, 1)
        others.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Offer, "take", take_second)
            ref = inc.remote(20)
        assert tl.get(ref) == 21
        assert [tl.get(other) for other in others[1:]] == [11] * len(others[1:])
        return len(others) == 2

    for _ in range(5):
        assert eventually(is_hit)
    assert all_is_given_back(tl)


class Register:
    """An actor that notes the order in which it is called."""

    def __init__(self):
        self.notes = []

    def note(self, n):
        self.notes.append(n)
        return n

    def note_all(self, *numbers):
        self.notes.extend(numbers)

    def all(self):
        return self.notes


def test_calls_of_an_actor_go_the_short_way_too_and_in_their_order(tl):
    register = tl.remote(Register).remote()
    n = 0
    for _ in range(scaled(300)):
        for _ in range(3):
            assert tl.get(register.note.remote(n)) == n
            n += 1
        # What is large, or another method, goes the long way and is not overtaken.
        register.note_all.remote(n, n + 1)
        register.note.remote(n + 2)
        register.note.remote(n + 3)
        n += 4
    assert tl.get(register.all.remote()) == list(range(n))
    assert short_cut().taken > 0


def test_two_actors_of_one_class_are_told_apart(tl):
    first, second = (tl.remote(Register).remote() for _ in range(2))
    for n in range(100):
        assert tl.get(first.note.remote(n)) == n
        assert tl.get(second.note.remote(-n)) == -n
    assert tl.get([first.all.remote(), second.all.remote()]) == [
        list(range(100)),
        [-n for n in range(100)],
    ]


def test_a_call_behind_kill_finds_the_actor_dead(tl):
    for n in range(20):
        register = tl.remote(Register).remote()
        tl.get([register.note.remote(k) for k in range(50)])
        tl.get(register.note.remote(n))
        tl.kill(register)
        with pytest.raises(tl.exceptions.ActorDiedError):
            tl.get(register.note.remote(n), timeout=20)


def test_an_actor_that_dies_meanwhile_is_restarted_and_the_call_is_answered(tl):
    """It has not begun when its process dies: it costs no retry."""
    register = tl.remote(Register).options(max_restarts=-1).remote()
    for n in range(scaled(20)):
        pid = tl.get(register.__ray_call__.remote(lambda _: os.getpid()))
        tl.get([register.note.remote(k) for k in range(50)])
        tl.get(register.note.remote(n))
        os.kill(pid, signal.SIGKILL)
        try:
            assert tl.get(register.note.remote(n), timeout=20) == n
        except tl.exceptions.ActorUnavailableError:
            pytest.fail("the call had not begun")


STORM = """
import random, signal, sys, time
import taskloom as ray

ray.init(num_cpus=2)
inc = ray.remote(max_retries=0)(lambda n: n + 1)
ray.get([inc.remote(n) for n in range(200)])

armed = False

def strike(signum, frame):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, strike)
rng = random.Random(1)
wrong = interrupted = done = 0
for n in range(int(sys.argv[1])):
    try:
        armed = n % 8 > 0  # on a busy machine none would be done in that time
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 150e-6))
        wrong += ray.get(inc.remote(n)) != n + 1
        done += 1
        armed = False
    except KeyboardInterrupt:
        interrupted += 1
assert ray.get([inc.remote(n) for n in range(100)], timeout=30) == list(range(1, 101))
deadline = time.monotonic() + 30
while ray.available_resources().get("CPU") != 2.0:
    assert time.monotonic() < deadline, ray.available_resources()
    time.sleep(0.01)
print(wrong, interrupted > 0, done > 0)
"""


def test_a_storm_of_ctrl_c_leaves_a_session_as_good_as_new(run_driver):
    done = run_driver(STORM, args=[str(scaled(3000))], timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "True", "True"]
