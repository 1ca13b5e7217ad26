"""A store that is full: it spills, it waits, and then it says what is in the way."""

from __future__ import annotations

import gc
import hashlib
import os
import threading

import numpy as np
import pytest

from gates import eventually

MB = 1_000_000
STORE = 20 * MB


@pytest.fixture
def small(fresh, tmp_path):
    fresh.init(num_cpus=2, object_store_memory=STORE, object_spilling_directory=str(tmp_path))
    return fresh


def spill_files(base) -> list[str]:
    return [name for _, _, names in os.walk(base) for name in names if name.endswith(".values")]


def random_arrays(count: int, size: int = 2 * MB) -> list[np.ndarray]:
    generator = np.random.default_rng(count)
    return [generator.integers(0, 255, size, dtype=np.uint8) for _ in range(count)]


def digest(array) -> bytes:
    return hashlib.blake2b(array).digest()


def test_four_times_the_store_is_put_and_read_back(small, tmp_path):
    arrays = random_arrays(40)
    refs = [small.put(array) for array in arrays]
    assert spill_files(tmp_path)
    assert [digest(small.get(ref)) for ref in refs] == [digest(array) for array in arrays]
    report = small.memory()
    assert report.used_bytes <= STORE
    assert report.spilled_bytes > 2 * STORE
    assert {info.where for info in report.objects} == {"store", "spilled"}


def test_tasks_read_what_was_spilled_and_their_results_are_spilled_too(small):
    @small.remote
    def turn(array):
        return array[::-1].copy()

    arrays = random_arrays(30)
    refs = [small.put(array) for array in arrays]
    turned = [turn.remote(ref) for ref in refs]
    assert all(
        np.array_equal(small.get(ref), array[::-1])
        for ref, array in zip(turned, arrays, strict=True)
    )


def test_files_go_with_the_objects_in_them(small, tmp_path):
    refs = [small.put(array) for array in random_arrays(40)]
    assert spill_files(tmp_path)
    del refs
    assert eventually(lambda: gc.collect() >= 0 and small.memory().objects == ())
    refs = [small.put(array) for array in random_arrays(15)]
    refs.clear()
    assert eventually(lambda: len(spill_files(tmp_path)) <= 5)


def test_the_end_of_the_session_leaves_no_file(small, tmp_path):
    refs = [small.put(array) for array in random_arrays(40)]
    assert spill_files(tmp_path)
    small.shutdown()
    assert os.listdir(tmp_path) == []
    del refs


def test_a_store_full_of_views_is_an_error_that_names_them(small):
    held = []
    with pytest.raises(small.exceptions.ObjectStoreFullError) as caught:
        held.extend(small.get(small.put(np.zeros(2 * MB, np.uint8))) for _ in range(20))
    text = str(caught.value)
    assert "no room for a value of 2.0 MB" in text
    assert "viewed by the driver" in text
    assert len(held) >= 8
    held.clear()
    gc.collect()
    assert small.get(small.put(np.ones(2 * MB, np.uint8))).sum() == 2 * MB


def test_the_error_names_the_largest_as_their_refs_do(small):
    ref = small.put(np.zeros(9 * MB, np.uint8))
    held = [small.get(ref)]
    with pytest.raises(small.exceptions.ObjectStoreFullError) as caught:
        held.extend(small.get(small.put(np.zeros(2 * MB, np.uint8))) for _ in range(20))
    assert f"the largest: {ref!r} of 9.0 MB, viewed by the driver" in str(caught.value)


def test_a_value_larger_than_the_store_is_refused_with_both_sizes(small):
    with pytest.raises(small.exceptions.ObjectStoreFullError, match=r"30\.0 MB .*\(20\.0 MB\)"):
        small.put(np.zeros(30 * MB, np.uint8))

    @small.remote
    def make():
        return np.zeros(30 * MB, np.uint8)

    with pytest.raises(small.exceptions.ObjectStoreFullError, match="larger than the whole"):
        small.get(make.remote())

    @small.remote
    def take(array):
        return len(array)

    with pytest.raises(small.exceptions.ObjectStoreFullError, match="larger than the whole"):
        take.remote(np.zeros(30 * MB, np.uint8))
    assert small.get(take.remote(np.zeros(5 * MB, np.uint8))) == 5 * MB


def test_a_worker_that_finds_no_room_gets_the_error_in_its_task(small):
    held = [small.get(small.put(np.zeros(2 * MB, np.uint8))) for _ in range(9)]

    @small.remote
    def make():
        return np.zeros(5 * MB, np.uint8)

    with pytest.raises(small.exceptions.ObjectStoreFullError, match="viewed by the driver"):
        small.get(make.remote())
    del held
    gc.collect()
    assert len(small.get(make.remote())) == 5 * MB


def test_who_waits_for_room_goes_on_when_there_is_some(small):
    held = [small.get(small.put(np.zeros(2 * MB, np.uint8))) for _ in range(9)]
    refs = []
    thread = threading.Thread(target=lambda: refs.append(small.put(np.ones(5 * MB, np.uint8))))
    thread.start()
    held.clear()
    gc.collect()
    thread.join()
    assert small.get(refs[0]).sum() == 5 * MB


def test_a_full_disk_is_an_error_for_that_put_only(small, monkeypatch):
    real, full = os.pwrite, True

    def pwrite(fd, data, position):
        if full:
            raise OSError(28, "No space left on device")
        return real(fd, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    refs, arrays = [], random_arrays(40)
    with pytest.raises(small.exceptions.OutOfDiskError, match="No space left"):
        refs.extend(small.put(array) for array in arrays)
    assert [digest(small.get(ref)) for ref in refs] == [
        digest(array) for array in arrays[: len(refs)]
    ]
    full = False
    refs += [small.put(array) for array in arrays[len(refs) :]]
    assert [digest(small.get(ref)) for ref in refs] == [digest(array) for array in arrays]


def test_a_spilled_file_that_is_lost_fails_only_the_gets_of_it(small, tmp_path):
    arrays = random_arrays(40)
    refs = [small.put(array) for array in arrays]
    [directory] = os.listdir(tmp_path)
    os.unlink(tmp_path / directory / "1.values")
    with pytest.raises(small.exceptions.ObjectLostError, match=r"1\.values"):
        small.get(refs[0])
    assert digest(small.get(refs[-1])) == digest(arrays[-1])
    assert digest(small.get(refs[20])) == digest(arrays[20])

    @small.remote
    def size(array):
        return len(array)

    with pytest.raises(small.exceptions.ObjectLostError):
        small.get(size.remote(refs[0]))
    assert small.get(size.remote(refs[-1])) == 2 * MB


def test_free_pages_go_back_to_the_system_after_a_while(small):
    small.get(small.put(np.ones(10 * MB, np.uint8)))
    assert eventually(lambda: gc.collect() >= 0 and small.memory().used_bytes == 0)
    assert eventually(lambda: small.memory().free_bytes == 0)


def test_local_mode_has_no_store_and_the_same_answers(fresh):
    fresh.init(local_mode=True)

    @fresh.remote
    def double(array):
        return array * 2

    assert fresh.get(double.remote(np.ones(MB))).sum() == 2 * MB
    assert fresh.memory().objects == ()
