"""The runtime context, what tasks print, and what the session tells of itself."""

from __future__ import annotations

import re
import sys

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, add
from tests.gates import Gate, eventually

import taskloom as tl


def test_a_task_knows_its_name_function_and_id():
    @tl.remote
    def look():
        context = tl.get_runtime_context()
        return context.get_task_name(), context.get_task_function_name(), context.get_task_id()

    ref = look.remote()
    name, function, task_id = tl.get(ref)
    assert name.endswith("look")
    assert function.endswith("look")
    assert task_id == ref.task_id()


def test_the_program_is_no_task_and_no_actor():
    context = tl.get_runtime_context()
    assert (context.get_task_id(), context.get_actor_id(), context.get_task_name()) == (None,) * 3


def test_program_and_tasks_agree_on_job_and_namespace():
    def facts():
        context = tl.get_runtime_context()
        return context.get_job_id(), context.namespace

    assert tl.get(tl.remote(facts).remote()) == facts()


def test_a_task_knows_its_node_and_worker():
    @tl.remote
    def look():
        context = tl.get_runtime_context()
        return context.get_node_id(), context.get_worker_id()

    node, worker = tl.get(look.remote())
    assert node in {node["NodeID"] for node in tl.nodes()}
    assert worker


def test_a_task_knows_that_a_session_is_there():
    @tl.remote
    def look():
        return tl.is_initialized(), tl.cluster_resources()["slot"]

    assert tl.get(look.remote(), timeout=LONG_S) == (True, 4.0)


def test_a_task_has_no_gpu_that_it_has_not_asked_for():
    assert tl.get(tl.remote(tl.get_gpu_ids).remote()) == []


@pytest.mark.differs("local_mode", AT_ONCE)
def test_available_resources_tell_what_is_free(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(num_cpus=0.1, resources={"slot": 3})
    def occupy():
        gate.enter("here")

    ref = occupy.remote()
    gate.wait_for("here")
    assert eventually(lambda: tl.available_resources().get("slot") == 1.0)
    gate.open()
    tl.get(ref, timeout=LONG_S)
    assert eventually(lambda: tl.available_resources().get("slot") == 4.0)


@pytest.mark.differs("dask", "why() says only that Dask has the call")
@pytest.mark.differs("local_mode", AT_ONCE)
@pytest.mark.differs("ray", "why() says only that Ray has the call")
def test_a_ref_says_what_it_waits_for(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def slow():
        gate.enter("inside")
        return 1

    ref = slow.remote()
    dependent = add.remote(ref, 1)
    gate.wait_for("inside")
    assert "slow" in dependent.why()
    gate.open()
    assert tl.get(dependent, timeout=LONG_S) == 2


@pytest.mark.lacks("dask", "Dask's own tools show its objects", raises=NotImplementedError)
@pytest.mark.lacks("ray", "`ray memory` shows the objects", raises=NotImplementedError)
@pytest.mark.differs("local_mode", "values are the program's own objects, so none are listed")
def test_memory_lists_the_values_of_the_session():
    ref = tl.put(bytes(1_000_000))
    assert tl.memory().used_bytes >= 1_000_000
    del ref


def test_a_second_init_is_refused_and_ignored_on_request():
    with pytest.raises(RuntimeError, match="twice"):
        tl.init()
    tl.init(ignore_reinit_error=True)
    assert tl.get(add.remote(1, 1)) == 2


@pytest.mark.differs("dask", "it arrives without a prefix, or in the logs of the workers")
@pytest.mark.differs("local_mode", "tasks print like any other code of the program")
def test_what_a_task_prints_arrives_at_the_program_with_name_and_pid(capsys):
    @tl.remote(name="speaker")
    def speak():
        print("to stdout")
        print("to stderr", file=sys.stderr)

    tl.get(speak.remote())
    seen = {"out": "", "err": ""}

    def has_arrived():
        captured = capsys.readouterr()
        seen["out"] += captured.out
        seen["err"] += captured.err
        return all(
            re.search(rf"\(speaker[^)]* pid=\d+[^)]*\)\S* to std{name}", seen[name])
            for name in seen
        )

    assert eventually(has_arrived), seen
