"""How calls and answers travel through Ray: what is sent is what arrives, in any of the forms."""

from __future__ import annotations

import pickle

import pytest

from taskloom import _ids
from taskloom._wire.remote_errors import system_failure
from taskloom._wire.serialization import pack_plain
from taskloom.backends import ray_wire
from taskloom.backends.cluster_driver import SMALL_BYTES, Job, Receipt
from taskloom.backends.cluster_values import Carried
from taskloom.exceptions import RaySystemError

JOB = Job(7 << _ids.INDEX_BITS, pack_plain((1,)), None, {}, None)
SMALL = pack_plain("small")


def test_a_call_arrives_with_the_form_of_its_answer():
    assert ray_wire.unpack_job(ray_wire.pack_job(JOB)) == (JOB, False)
    assert ray_wire.unpack_job(ray_wire.pack_for_one(JOB)) == (JOB, True)


def test_a_call_of_an_actor_arrives_with_its_spec():
    for wants_one in (False, True):
        packed = ray_wire.pack_call(b"spec", JOB, wants_one=wants_one)
        assert ray_wire.unpack_call(packed) == (b"spec", wants_one, JOB)


def test_handles_are_left_to_ray():
    with_handles = JOB._replace(places={1: object()})
    assert ray_wire.pack_job(with_handles) is with_handles
    assert ray_wire.pack_for_one(with_handles) is None
    assert ray_wire.pack_call(b"spec", with_handles, wants_one=True)[2] is with_handles


def test_only_a_call_of_which_nothing_must_be_said_goes_without_arguments():
    bare = ray_wire.bare_job(bytes(24))
    assert ray_wire.is_bare(bare)
    assert not ray_wire.is_bare(JOB)
    assert not ray_wire.is_bare(bare._replace(context=b"variables"))
    assert not ray_wire.is_bare(bare._replace(registered=(("name", b"blob"),)))
    assert not ray_wire.is_bare(bare._replace(attempts=1))


def test_the_names_of_such_calls_are_names_like_others_and_nobody_mints_them():
    first, second = (ray_wire.named_by(bytes([n]) * 24) for n in (1, 255))
    assert first != second
    assert _ids.task_of(_ids.object_of(_ids.TaskKey(first), 0)) == first
    highest = _ids.Mint((1 << 59) - 1).next_task()
    assert min(first, second) > highest
    shown = _ids.object_bytes(bytes(12), _ids.object_of(_ids.TaskKey(second), 0))
    assert _ids.parse_object_bytes(shown)[1] == second + 1


def test_a_small_value_and_its_receipt_are_one_object():
    sent = ray_wire.answer((Receipt((SMALL,), 0.25, alone=True), [SMALL]), in_one=True)
    assert type(sent) is bytes
    assert ray_wire.receipt_in(sent) == Receipt((SMALL,), 0.25, alone=True)
    assert ray_wire.outcome_in(sent) == SMALL


@pytest.mark.parametrize("size", [SMALL_BYTES, SMALL_BYTES + 1])
def test_the_receipt_of_a_large_value_does_not_hold_it(size):
    outcome = bytes(size)
    sent = ray_wire.answer((Receipt((None,), 0.5), [outcome]), in_one=True)
    expected = outcome if size <= SMALL_BYTES else None
    assert ray_wire.receipt_in(sent) == Receipt((expected,), 0.5)
    assert ray_wire.outcome_in(sent) == outcome


def test_a_failure_or_a_value_with_buffers_is_one_object_too():
    failure = system_failure(RaySystemError("it broke"))
    sent = ray_wire.answer((Receipt((failure,)), [failure]), in_one=True)
    assert ray_wire.receipt_in(sent).outcomes == (failure,)
    assert ray_wire.outcome_in(sent) is failure
    carried = Carried([b"pickle"], [bytearray(SMALL_BYTES)], {})
    sent = ray_wire.answer((Receipt((None,)), [carried]), in_one=True)
    assert ray_wire.receipt_in(sent).outcomes == (None,)
    assert ray_wire.outcome_in(sent) is carried


def test_what_comes_in_several_objects_is_not_taken_for_one():
    receipt = Receipt((SMALL, None), 0.5)
    first, *outcomes = ray_wire.answer((receipt, [SMALL, SMALL]))
    assert ray_wire.receipt_in(first) is None
    assert Receipt(*pickle.loads(first)) == receipt
    assert [ray_wire.outcome_in(outcome) for outcome in outcomes] == [SMALL, SMALL]
