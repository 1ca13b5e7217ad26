"""What the store does when things break that nobody expects to break."""

from __future__ import annotations

import os
import shutil
import threading
import warnings

import numpy as np
import pytest

from gates import eventually
from taskloom import _current
from taskloom._store import spill
from taskloom._store.arena import MAX_ARENA_BYTES, Arena
from taskloom._store.object_store import ObjectStore
from taskloom._store.stored import Parts

MB = 1_000_000


@pytest.fixture
def small(fresh, tmp_path):
    fresh.init(num_cpus=1, object_store_memory=20 * MB, object_spilling_directory=str(tmp_path))
    return fresh


def ones(megabytes: int, value: int = 1) -> np.ndarray:
    return np.full(megabytes * MB, value, np.uint8)


def fill(tl, count: int = 15) -> list:
    return [tl.put(ones(2, number)) for number in range(count)]


def first_bytes(tl, refs) -> list[int]:
    return [int(tl.get(ref)[-1]) for ref in refs]


def test_a_spill_that_fails_for_an_unheard_of_reason_is_an_error_and_no_hang(small, monkeypatch):
    def fail(*_args):
        raise MemoryError("no more")

    monkeypatch.setattr(spill, "_write_all", fail)
    with pytest.raises(small.exceptions.OutOfDiskError, match=r"MemoryError\('no more'\)"):
        fill(small)
    monkeypatch.undo()
    assert first_bytes(small, fill(small)) == list(range(15))


def test_without_a_thread_to_write_them_values_are_not_spilled_and_nobody_hangs(small, monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "taskloom-janitor":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(small.exceptions.OutOfDiskError, match="can't start new thread"):
        fill(small)
    monkeypatch.undo()
    assert first_bytes(small, fill(small)) == list(range(15))


def test_who_waits_for_room_sees_that_views_went_though_their_objects_stay(small):
    refs = fill(small, 7)
    views = [small.get(ref) for ref in refs]
    threading.Timer(0.6, views.clear).start()
    large = small.put(ones(8, 9))
    assert first_bytes(small, [*refs, large]) == [*range(7), 9]


def test_an_argument_that_several_calls_share_can_be_spilled(small):
    @small.remote
    def wait(seconds):
        threading.Event().wait(seconds)

    @small.remote
    def last(array, _gate):
        return int(array[-1])

    blocker = wait.remote(60)
    kept = []
    for number in range(7):
        array = ones(2, number)
        kept.append(last.remote(array, blocker))
        small.cancel(last.remote(array, blocker))
    small.put(ones(8))
    assert small.memory().spilled_bytes
    small.cancel(blocker, force=True)


def test_a_spill_directory_that_somebody_removed_is_made_again(small, tmp_path):
    lost = fill(small)
    eventually(lambda: small.memory().spilled_bytes)
    for name in os.listdir(tmp_path):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    refs = fill(small)
    assert first_bytes(small, refs) == list(range(15))
    del lost


def test_a_spill_directory_that_does_not_exist_is_made(fresh, tmp_path):
    base = tmp_path / "not" / "yet"
    fresh.init(num_cpus=1, object_store_memory=20 * MB, object_spilling_directory=base)
    assert first_bytes(fresh, fill(fresh)) == list(range(15))
    assert os.listdir(base)


def test_a_relative_spill_directory_stays_where_it_was(fresh, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fresh.init(num_cpus=1, object_store_memory=20 * MB, object_spilling_directory="here")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert first_bytes(fresh, fill(fresh)) == list(range(15))
    assert os.listdir(tmp_path / "here")


def test_files_go_without_another_spill(small, tmp_path):
    refs = fill(small)
    assert eventually(lambda: small.memory().spilled_bytes)
    refs.clear()
    assert eventually(
        lambda: not [n for _, _, names in os.walk(tmp_path) for n in names if n.endswith("values")]
    )


def test_a_hint_that_is_made_an_error_is_raised_as_it_is(tl):
    @tl.remote
    def wait(_array, _gate):
        return 1

    @tl.remote
    def sleep():
        threading.Event().wait(60)

    blocker, array = sleep.remote(), ones(1)
    refs = [wait.remote(array, blocker) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="again and again"):
            wait.remote(array, blocker)
    for ref in (blocker, *refs):
        tl.cancel(ref, force=True)


def test_a_store_of_any_size_can_be_asked_for(fresh):
    fresh.init(num_cpus=1, object_store_memory=2**62)
    assert fresh.memory().capacity_bytes == MAX_ARENA_BYTES
    assert int(fresh.get(fresh.put(ones(1)))[-1]) == 1


def test_a_closed_arena_is_not_read_as_zeros():
    arena = Arena.create(1 << 20)
    arena.write(0, [b"x" * 100], fresh=True)
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        arena.window(None)
    with pytest.raises(ValueError, match="closed"):
        arena.write(0, [b"x" * 100], fresh=False)
    assert arena.fd == -1


def test_space_is_made_cold_only_as_far_as_somebody_needs_it():
    store = ObjectStore(16 << 20, lambda: None)
    parts = Parts.of([bytes(1 << 20)], ())
    blocks = [store.write(parts, store.allocate(1 << 20)) for _ in range(16)]
    del blocks[::2]
    assert store.allocate(2 << 20) is not None
    assert store.warm == 6 << 20
    store.trim()
    assert store.warm == 0
    blocks.clear()
    store.close()


def test_waiting_room_is_told_also_when_another_has_taken_note_of_what_was_freed(small):
    storage = _current.require()._engine.storage
    refs = fill(small, 7)
    views = [small.get(ref) for ref in refs]
    done = threading.Event()

    def put():
        small.put(ones(8))
        done.set()

    thread = threading.Thread(target=put)
    thread.start()
    assert eventually(lambda: storage._waiting)
    refs.clear()
    views.clear()
    storage.store.tidy()
    thread.join()
    assert done.is_set()


def test_space_that_an_idle_worker_was_granted_is_recalled_when_somebody_needs_it(small):
    @small.remote
    def make(megabytes):
        return ones(megabytes)

    refs = [small.put(ones(2)) for _ in range(7)]
    views = [small.get(ref) for ref in refs]
    waiting = make.remote(12)
    assert eventually(_questions)
    small.cancel(waiting)  # it is granted what it asked for, and does not write
    views.clear()
    refs.clear()
    assert eventually(lambda: small.memory().granted_bytes >= 12 * MB)
    large = small.put(ones(15, 7))
    assert int(small.get(large)[-1]) == 7
    assert int(small.get(make.remote(1))[-1]) == 1


def _questions():
    return _current.require()._engine.storage._questions


PRELUDE = """
import os, signal, threading, time
import numpy as np
import psutil
import taskloom as tl
def eventually(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, str(tl.memory())
        time.sleep(0.01)
"""


def ok(result) -> None:
    assert result.returncode == 0, result.stderr
    assert "ok" in result.stdout


def test_what_a_put_or_a_call_made_when_it_was_interrupted_is_freed(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
import sys
sys.unraisablehook = lambda _: None  # an interrupt may strike in __del__, too
tl.init(num_cpus=1)
array = np.ones(150_000, np.uint8)
heard = 0

ready = threading.Event()

def interrupt():
    ready.wait()
    while heard < 400:
        time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

def put_many():
    global heard
    while heard < 400:
        try:
            while heard < 400:
                tl.put(array)
        except KeyboardInterrupt:
            heard += 1

thread = threading.Thread(target=interrupt)
thread.start()
while thread.is_alive():
    try:
        ready.set()
        put_many()
        thread.join()
    except KeyboardInterrupt:
        heard += 1
# An interrupt that strikes a __del__ at its first line is lost with it: that is Python's.
eventually(lambda: len(tl.memory().objects) < 20)
print("ok")
"""
        )
    )


def test_when_the_zygote_is_killed_the_space_of_its_workers_comes_back(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
@tl.remote
def make():
    return np.ones(1_000_000, np.uint8)

tl.init(num_cpus=2, object_store_memory=100_000_000)
tl.get([make.remote() for _ in range(6)])
eventually(lambda: tl.memory().granted_bytes)
zygote, = psutil.Process().children()
zygote.kill()
eventually(lambda: not tl.memory().granted_bytes)
assert tl.get(make.remote())[-1] == 1
print("ok")
"""
        )
    )


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_call_with_a_large_argument_in_a_forked_child_says_that_it_is_one(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
tl.init(num_cpus=1)
call = tl.remote(len)
array = np.ones(1_000_000, np.uint8)
if os.fork() == 0:
    try:
        call.remote(array)
    except RuntimeError as error:
        os._exit("fork" not in str(error))
    os._exit(1)
assert os.wait()[1] == 0
print("ok")
"""
        )
    )
