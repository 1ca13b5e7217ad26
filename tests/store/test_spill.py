"""Values on disk: written together, read back, removed with the last of them."""

from __future__ import annotations

import fcntl
import os
import stat

import pytest

from taskloom._store.spill import SpillDirectory, remove_stale
from taskloom._store.stored import Parts, Shape
from taskloom.exceptions import ObjectLostError


def stretch(*buffers: bytes, data: bytes = b"pickle") -> tuple[memoryview, Shape]:
    shape = Shape(len(data), tuple(len(buffer) for buffer in buffers))
    parts = Parts([data], [memoryview(buffer) for buffer in buffers], shape)
    return memoryview(b"".join(bytes(piece) for piece in parts.stretch())), shape


@pytest.fixture
def directory(tmp_path):
    directory = SpillDirectory(str(tmp_path))
    yield directory
    directory.close()


def files(base) -> list[str]:
    return sorted(name for _, _, names in os.walk(base) for name in names if name != "lock")


def test_nothing_is_made_before_the_first_value_comes(directory, tmp_path):
    assert os.listdir(tmp_path) == []


def test_values_are_read_back_as_they_were(directory):
    values = directory.write([stretch(b"a" * 1000, b"", b"b" * 70), stretch(data=b"x" * 500)])
    data, buffers = values[0].open()
    assert bytes(data) == b"pickle"
    assert [bytes(buffer) for buffer in buffers] == [b"a" * 1000, b"", b"b" * 70]
    assert all(buffer.readonly for buffer in buffers)
    assert bytes(values[1].open()[0]) == b"x" * 500


def test_values_written_together_share_a_file_that_goes_with_the_last_of_them(directory, tmp_path):
    first, second = directory.write([stretch(b"1"), stretch(b"2")])
    assert len(files(tmp_path)) == 1
    del first
    directory.sweep_files()
    assert len(files(tmp_path)) == 1
    data, _ = second.open()
    del second
    directory.sweep_files()
    assert files(tmp_path) == []
    assert bytes(data) == b"pickle"


def test_only_the_owner_can_read_what_is_spilled(directory, tmp_path):
    values = directory.write([stretch(b"secret")])
    path = values[0].file.path
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_file_that_is_lost_is_an_error_that_names_it(directory, damage):
    value = directory.write([stretch(b"z" * 1000)])[0]
    if damage == "removed":
        os.unlink(value.file.path)
    else:
        os.truncate(value.file.path, 500)
    with pytest.raises(ObjectLostError, match=r"\.values and cannot be read"):
        value.open()


def test_a_write_that_fails_leaves_no_file(directory, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        directory.write([stretch(b"1")])
    assert files(tmp_path) == []


def test_the_end_of_the_session_removes_everything(directory, tmp_path):
    values = directory.write([stretch(b"1")])
    directory.close()
    assert os.listdir(tmp_path) == []
    del values


def test_what_a_dead_session_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    living, dead = SpillDirectory(str(tmp_path)), SpillDirectory(str(tmp_path))
    kept = living.write([stretch(b"1")])
    left = dead.write([stretch(b"1")])
    dead.forget()  # as if its process had been killed: the lock is free
    remove_stale(str(tmp_path))
    assert os.path.exists(kept[0].file.path)
    assert not os.path.exists(left[0].file.path)
    living.close()


def test_directories_that_only_look_like_ours_are_left_alone(tmp_path):
    strange = tmp_path / f"taskloom-spill-{os.getuid()}-strange"
    strange.mkdir()
    (strange / "precious").write_text("x")
    link = tmp_path / f"taskloom-spill-{os.getuid()}-link"
    target = tmp_path / "target"
    target.mkdir()
    (target / "lock").write_text("")
    link.symlink_to(target)
    remove_stale(str(tmp_path))
    assert (strange / "precious").exists()
    assert (target / "lock").exists()


def test_the_lock_and_not_a_process_id_says_that_a_session_lives(tmp_path):
    directory = tmp_path / f"taskloom-spill-{os.getuid()}-other"
    directory.mkdir()
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_stale(str(tmp_path))
        assert directory.exists()
    remove_stale(str(tmp_path))
    assert not directory.exists()


def test_there_is_nothing_to_remove_where_there_is_no_directory(tmp_path):
    remove_stale(str(tmp_path / "missing"))
