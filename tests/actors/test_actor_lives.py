"""How actors die, are restarted, named, limited and told what they are (ACT-12 to ACT-24)."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from tests.captured import printed
from tests.gates import Gate, eventually

import taskloom
from taskloom.actor import exit_actor
from taskloom.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    PendingCallsLimitExceeded,
    RayActorError,
)

SESSION = {"num_cpus": 2, "namespace": "here"}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@taskloom.remote
class Worker:
    def __init__(self, gate=None, name="worker"):
        self.gate = gate
        self.items = []
        if gate is not None:
            gate.note("made")

    def add(self, item):
        self.items.append(item)
        return self.items

    def pid(self):
        return os.getpid()

    def stay(self):
        self.gate.enter("stay")
        return "stayed"

    def die(self):
        os._exit(7)

    def raise_signal(self, number):
        os.kill(os.getpid(), number)

    def leave(self):
        exit_actor()

    def restarted(self):
        return taskloom.get_runtime_context().was_current_actor_reconstructed

    def __ray_shutdown__(self):
        if self.gate is not None:
            self.gate.note("shutdown")


def is_gone(pid):
    return not os.path.exists(f"/proc/{pid}")


def facts(_self=None):
    context = taskloom.get_runtime_context()
    return {
        "id": context.get_actor_id(),
        "name": context.get_actor_name(),
        "task": context.get_task_name(),
        "function": context.get_task_function_name(),
        "resources": context.get_assigned_resources(),
        "namespace": context.namespace,
    }


# -- killing ------------------------------------------------------------------------------------


def test_kill_ends_the_process_and_fails_all_calls_ACT_14(tl, gate):
    worker = Worker.remote(gate)
    pid = tl.get(worker.pid.remote())
    running, queued = worker.stay.remote(), worker.add.remote(1)
    gate.wait_for("stay")
    tl.kill(worker)
    for ref in (running, queued, worker.add.remote(2)):
        with pytest.raises(ActorDiedError, match=r"Worker.*killed by kill\(\)") as caught:
            tl.get(ref)
        assert caught.value.actor_id == worker._actor_id.hex()
    assert eventually(lambda: is_gone(pid))
    assert gate.count("shutdown") == 0
    tl.kill(worker)  # twice is no mistake


def test_only_handles_are_killed_ACT_14(tl):
    with pytest.raises(ValueError, match="only supported for actors"):
        tl.kill(tl.put(1))
    with pytest.raises(TypeError, match="only supported for object refs"):
        tl.cancel(Worker.remote())


def test_an_actor_that_is_not_there_yet_is_killed(fresh):
    fresh.init(num_cpus=1)
    first = Worker.options(num_cpus=1).remote()
    fresh.get(first.pid.remote())
    second = Worker.options(num_cpus=1).remote()
    ref = second.pid.remote()
    fresh.kill(second)
    with pytest.raises(ActorDiedError):
        fresh.get(ref)
    fresh.kill(first)
    assert eventually(lambda: fresh.available_resources().get("CPU") == 1)


def test_kill_with_restart_runs_the_constructor_again_ACT_14(tl, gate):
    worker = Worker.options(max_restarts=1).remote(gate)
    tl.get(worker.add.remote(1))
    assert not tl.get(worker.restarted.remote())
    tl.kill(worker, no_restart=False)
    gate.wait_for("made", 2)
    assert tl.get(worker.add.options(max_task_retries=-1).remote(2)) == [2]
    assert tl.get(worker.restarted.remote())
    tl.kill(worker, no_restart=False)
    with pytest.raises(ActorDiedError):
        while True:
            tl.get(worker.add.remote(3))


# -- crashes and restarts -----------------------------------------------------------------------


def test_a_crash_fails_the_call_that_ran_and_all_after_it_ACT_17(tl):
    worker = Worker.remote()
    refs = [worker.die.remote(), worker.add.remote(1)]
    for ref in [*refs, worker.add.remote(2)]:
        with pytest.raises(ActorDiedError, match="exited with code 7"):
            tl.get(ref)
    with pytest.raises(ActorDiedError, match="while it ran Worker.die"):
        tl.get(refs[0])


def test_a_signal_is_named(tl):
    worker = Worker.remote()
    with pytest.raises(ActorDiedError, match="SIGSEGV"):
        tl.get(worker.raise_signal.remote(signal.SIGSEGV))


def test_a_crash_from_outside_is_noticed_by_an_idle_actor(tl):
    worker = Worker.remote()
    os.kill(tl.get(worker.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        while True:
            tl.get(worker.pid.remote())


def test_the_call_that_ran_is_unavailable_and_those_behind_it_run_after_the_restart(tl, gate):
    worker = Worker.options(max_restarts=1).remote(gate)
    tl.get(worker.add.remote("lost"))
    refs = [worker.die.remote(), worker.add.remote(1), worker.add.remote(2)]
    with pytest.raises(ActorUnavailableError, match="exited with code 7") as caught:
        tl.get(refs[0])
    assert isinstance(caught.value, RayActorError)
    assert tl.get(refs[1:]) == [[1], [1, 2]]
    assert gate.count("made") == 2


def test_max_task_retries_runs_the_call_again_in_its_place_P7(tl, gate):
    @tl.remote(max_restarts=-1, max_task_retries=-1)
    class Phoenix:
        def __init__(self):
            self.items = []

        def add(self, item):
            gate.note(f"run-{item}")
            if item == 3 and gate.count("run-3") < 3:
                os._exit(1)
            self.items.append(item)

        def all(self):
            return self.items

    phoenix = Phoenix.remote()
    refs = [phoenix.add.remote(number) for number in range(6)]
    tl.get(refs)
    assert [gate.count(f"run-{number}") for number in (3, 4, 5)] == [3, 1, 1]
    # State is gone, never mixed.  What had ended just before the crash may have run again,
    # because its result was lost, but in its place.
    items = tl.get(phoenix.all.remote())
    assert items == list(range(6))[-len(items) :]
    assert items[-3:] == [3, 4, 5]


def test_restarts_are_counted(tl, gate):
    worker = Worker.options(max_restarts=2, max_task_retries=-1).remote(gate)
    with pytest.raises(ActorDiedError, match="restarted 2 times"):
        tl.get(worker.die.remote())
    assert gate.count("made") == 3


def test_a_constructor_that_crashes_uses_up_restarts(tl, gate):
    @tl.remote(max_restarts=2)
    class Crasher:
        def __init__(self):
            gate.note("made")
            os._exit(3)

        def hello(self): ...

    with pytest.raises(ActorDiedError, match="exited with code 3"):
        tl.get(Crasher.remote().hello.remote())
    assert gate.count("made") == 3


def test_a_constructor_that_raises_is_not_run_again_ACT_16(tl, gate):
    @tl.remote(max_restarts=5)
    class Raiser:
        def __init__(self):
            gate.note("made")
            raise ValueError("constructor")

        def hello(self): ...

    raiser = Raiser.remote()
    with pytest.raises(ActorDiedError, match="constructor"):
        tl.get(raiser.hello.remote())
    assert gate.count("made") == 1


def test_the_arguments_of_a_constructor_are_kept_for_its_restarts(tl, gate):
    @tl.remote
    class Keeper:
        def __init__(self, value, box):
            self.value = value + taskloom.get(box[0])

        def get(self):
            return self.value

        def die(self):
            os._exit(1)

    ref = tl.put(1)
    keeper = Keeper.options(max_restarts=1).remote(ref, [tl.put(10)])
    assert tl.get(keeper.get.remote()) == 11
    del ref
    with pytest.raises(ActorUnavailableError):
        tl.get(keeper.die.remote())
    assert tl.get(keeper.get.remote()) == 11


def test_an_async_actor_is_restarted_as_well(tl, gate):
    @tl.remote(max_restarts=-1, max_task_retries=2)
    class Async:
        async def die_once(self):
            gate.note("run")
            if gate.count("run") == 1:
                os._exit(1)
            return "done"

        async def sleep(self):
            return "slept"

    actor = Async.remote()
    assert tl.get([actor.die_once.remote(), actor.sleep.remote()]) == ["done", "slept"]


# -- leaving ------------------------------------------------------------------------------------


def test_exit_actor_ends_it_in_good_order_ACT_15(tl, gate):
    worker = Worker.options(max_restarts=-1).remote(gate)
    pid = tl.get(worker.pid.remote())
    refs = [worker.leave.remote(), worker.add.remote(1)]
    for ref in [*refs, worker.add.remote(2)]:
        with pytest.raises(ActorDiedError, match=r"exit_actor\(\) was called in Worker.leave"):
            tl.get(ref)
    assert eventually(lambda: is_gone(pid))
    assert gate.count("shutdown") == 1
    assert gate.count("made") == 1


@pytest.mark.parametrize("kind", ["thread", "coroutine", "method of an async actor"])
def test_exit_actor_works_in_every_kind_of_actor_ACT_15(tl, kind):
    @tl.remote
    class Threaded:
        def leave(self):
            exit_actor()

    @tl.remote
    class Async:
        async def leave(self):
            exit_actor()

        def leave_too(self):
            exit_actor()

    if kind == "thread":
        ref = Threaded.options(max_concurrency=3).remote().leave.remote()
    else:
        actor = Async.remote()
        ref = (actor.leave if kind == "coroutine" else actor.leave_too).remote()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        tl.get(ref)


def test_exit_actor_is_for_actors_ACT_15(tl):
    with pytest.raises(TypeError):
        exit_actor()
    with pytest.raises(TypeError):
        tl.get(tl.remote(lambda: exit_actor()).remote())


def test_ray_terminate_waits_for_its_turn_ACT_13(tl, gate):
    worker = Worker.remote(gate)
    before, end, behind = (
        worker.add.remote(1),
        worker.__ray_terminate__.remote(),
        worker.pid.remote(),
    )
    assert tl.get(before) == [1]
    for ref in (end, behind):
        with pytest.raises(ActorDiedError, match="__ray_terminate__"):
            tl.get(ref)
    gate.wait_for("shutdown")


def test_the_shutdown_hook_runs_when_the_last_handle_goes_ACT_13(tl, gate):
    worker = Worker.remote(gate)
    pid = tl.get(worker.pid.remote())
    del worker
    gate.wait_for("shutdown")
    assert eventually(lambda: is_gone(pid))


def test_exit_handlers_run_when_an_actor_ends_in_good_order(tl, gate):
    @tl.remote
    class Atexit:
        def __init__(self):
            import atexit

            atexit.register(lambda: gate.note("atexit"))

        def hello(self):
            return 1

    actor = Atexit.remote()
    tl.get(actor.hello.remote())
    del actor
    gate.wait_for("atexit")


def test_a_shutdown_hook_that_raises_is_told_on_stderr(tl, capfd):
    @tl.remote
    class Raises:
        def __ray_shutdown__(self):
            raise ValueError("in the hook")

        def pid(self):
            return os.getpid()

    actor = Raises.remote()
    pid = tl.get(actor.pid.remote())
    del actor
    assert eventually(lambda: is_gone(pid))
    assert eventually(lambda: "in the hook" in printed(capfd, "err"))


# -- names --------------------------------------------------------------------------------------


def test_a_named_actor_is_found_by_everybody_ACT_18(tl):
    worker = Worker.options(name="found").remote()
    assert tl.get_actor("found") == worker
    assert tl.get_actor("found", namespace="here") == worker
    assert tl.get(tl.remote(lambda: taskloom.get_actor("found")).remote()) == worker
    tl.get(tl.get_actor("found").add.remote(1))
    assert tl.get(worker.add.remote(2)) == [1, 2]


def test_names_that_are_not_there_are_errors_ACT_18(tl):
    for name, error in (("nobody", ValueError), ("", ValueError), (3, TypeError)):
        with pytest.raises(error):
            tl.get_actor(name)
    with pytest.raises(ValueError, match="namespace"):
        tl.get_actor("x", namespace="")


def test_a_name_is_taken_once_in_a_namespace_ACT_18(tl):
    worker = Worker.options(name="once").remote()
    with pytest.raises(ActorAlreadyExistsError, match="once"):
        Worker.options(name="once").remote()
    with pytest.raises(ValueError):
        Worker.options(name="once", namespace="here").remote()
    elsewhere = Worker.options(name="once", namespace="elsewhere").remote()
    assert tl.get_actor("once") == worker
    assert tl.get_actor("once", namespace="elsewhere") == elsewhere

    @tl.remote
    def take():
        try:
            Worker.options(name="once").remote()
        except ActorAlreadyExistsError:
            return "taken"

    assert tl.get(take.remote()) == "taken"


@pytest.mark.parametrize("end", ["kill", "crash", "handle", "constructor"])
def test_the_name_of_a_dead_actor_is_free_again_ACT_18(tl, end, capfd):
    name = f"free-{end}"
    worker = Worker.options(name=name).remote()
    if end == "kill":
        tl.kill(worker)
    elif end == "crash":
        with pytest.raises(ActorDiedError):
            tl.get(worker.die.remote())
    elif end == "handle":
        del worker
    else:
        tl.kill(worker)

        @tl.remote(name=name)
        class Broken:
            def __init__(self):
                raise ValueError

            def hello(self): ...

        with pytest.raises(ActorDiedError):
            tl.get(Broken.remote().hello.remote())

    def try_again():
        try:
            return Worker.options(name=name).remote()
        except ValueError:
            return None

    again = []
    assert eventually(lambda: again.append(try_again()) or again[-1])
    assert tl.get(again[-1].add.remote(1)) == [1]


def test_a_handle_by_name_does_not_keep_the_actor_alive_ACT_12(tl):
    worker = Worker.options(name="weak").remote()
    pid = tl.get(worker.pid.remote())
    weak = tl.get_actor("weak")
    passed = tl.put([weak])
    del worker
    assert eventually(lambda: is_gone(pid))
    for handle in (weak, tl.get(passed)[0]):
        with pytest.raises(ActorDiedError, match="all handles"):
            tl.get(handle.pid.remote())
    with pytest.raises(ValueError):
        tl.get_actor("weak")


def test_get_if_exists_gives_the_one_that_is_there_ACT_19(tl):
    kind = Worker.options(name="shared", get_if_exists=True)
    worker = kind.remote(None)
    assert kind.remote(1, 2, 3, "these are ignored") == worker
    assert tl.get(tl.remote(lambda: kind.remote()).remote()) == worker
    with pytest.raises(ValueError, match="get_if_exists"):
        Worker.options(get_if_exists=True)


def test_get_if_exists_of_many_threads_and_tasks_makes_one_actor_ACT_19(tl):
    kind = Worker.options(name="race", get_if_exists=True)
    found = []
    threads = [threading.Thread(target=lambda: found.append(kind.remote())) for _ in range(8)]
    for thread in threads:
        thread.start()
    tasks = [tl.remote(lambda: kind.remote()).remote() for _ in range(8)]
    for thread in threads:
        thread.join()
    found += tl.get(tasks)
    assert len(set(found)) == 1
    tl.kill(found[0])


def test_living_names_are_listed_ACT_21(tl):
    one = Worker.options(name="listed").remote()
    two = Worker.options(name="listed", namespace="other").remote()
    # Those of tests before this one may still be about to end.
    assert eventually(lambda: tl.util.list_named_actors() == ["listed"])
    rows = tl.util.list_named_actors(all_namespaces=True)
    assert sorted(rows, key=lambda row: row["namespace"]) == [
        {"name": "listed", "namespace": "here"},
        {"name": "listed", "namespace": "other"},
    ]
    del one, two


# -- limits and room ----------------------------------------------------------------------------


def test_max_pending_calls_refuses_further_calls_ACT_22(tl, gate):
    worker = Worker.options(max_pending_calls=2).remote(gate)
    refs = [worker.stay.remote()]
    gate.wait_for("stay")
    refs.append(worker.add.remote(1))
    for _ in range(2):
        with pytest.raises(PendingCallsLimitExceeded, match="max_pending_calls=2"):
            worker.add.remote(2)
    gate.open()
    tl.get(refs)
    assert tl.get(worker.add.remote(3)) == [1, 3]

    @tl.remote
    def call_often(worker):
        for _ in range(5):
            taskloom.get([worker.pid.remote(), worker.pid.remote()])

    tl.get(call_often.remote(worker))


def test_default_actors_take_no_cpu_while_they_live_ACT_5(fresh):
    fresh.init(num_cpus=1)
    workers = [Worker.remote() for _ in range(5)]
    assert len(set(fresh.get([worker.pid.remote() for worker in workers]))) == 5
    assert fresh.available_resources()["CPU"] == 1
    resources = fresh.get(workers[0].__ray_call__.remote(facts))["resources"]
    assert resources == {}


def test_an_actor_with_cpus_keeps_them_while_it_lives_ACT_5(fresh):
    fresh.init(num_cpus=2, resources={"db": 1})
    first = Worker.options(num_cpus=2).remote()
    second = Worker.options(resources={"db": 1}).remote()  # and one CPU
    fresh.get(first.pid.remote())
    waiting = second.pid.remote()
    assert "CPU" not in fresh.available_resources()
    assert fresh.wait([waiting], timeout=0.1)[0] == []
    del first
    assert fresh.get(waiting)
    assert fresh.available_resources()["CPU"] == 1
    assert "db" not in fresh.available_resources()
    fresh.kill(second)
    assert eventually(lambda: fresh.available_resources().get("CPU") == 2)


def test_an_actor_that_can_never_be_placed_is_an_error_at_once(tl):
    worker = Worker.options(num_cpus=1000).remote()
    with pytest.raises(ActorUnschedulableError, match="1000"):
        tl.get(worker.pid.remote())


def test_tasks_and_actors_get_their_turn(fresh):
    fresh.init(num_cpus=1)
    task = fresh.remote(lambda: 1)
    workers = [Worker.remote() for _ in range(3)]
    refs = [task.remote() for _ in range(50)]
    assert sum(fresh.get(refs)) == 50
    assert all(fresh.get([worker.pid.remote() for worker in workers]))


def test_gpus_of_an_actor_are_seen_by_its_methods(fresh, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    fresh.init(num_cpus=2, num_gpus=2)

    @fresh.remote(num_gpus=1)
    class Trainer:
        def devices(self):
            return os.environ["CUDA_VISIBLE_DEVICES"], taskloom.get_gpu_ids()

    one, two = Trainer.remote(), Trainer.remote()
    seen = fresh.get([one.devices.remote(), two.devices.remote(), one.devices.remote()])
    assert {seen[0][0], seen[1][0]} == {"4", "5"}
    assert seen[2] == seen[0]
    assert seen[0][1] == [int(seen[0][0])]


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"speed": 1}, ValueError, "Invalid option keyword speed for"),
        ({"max_retries": 1}, ValueError, "Invalid option keyword max_retries for actors"),
        ({"max_restarts": -2}, ValueError, "max_restarts"),
        ({"max_restarts": 1.5}, TypeError, "max_restarts"),
        ({"max_task_retries": -2}, ValueError, "max_task_retries"),
        ({"max_concurrency": 0}, ValueError, "max_concurrency"),
        ({"max_pending_calls": 0}, ValueError, "max_pending_calls"),
        ({"lifetime": "long"}, ValueError, "lifetime"),
        ({"name": ""}, ValueError, "empty"),
        ({"name": 5}, TypeError, "name"),
        ({"namespace": ""}, ValueError, "empty"),
        ({"num_cpus": -1}, ValueError, "negative"),
        ({"get_if_exists": True}, ValueError, "get_if_exists"),
        ({"concurrency_groups": {"io": 0}}, ValueError, "concurrency"),
        ({"runtime_env": {"pip": ["x"]}}, NotImplementedError, "runtime_env"),
    ],
)
def test_bad_options_are_errors_at_the_call_that_makes_them_ACT_4(options, error, text):
    with pytest.raises(error, match=text):
        Worker.options(**options)
    with pytest.raises(error, match=text):

        @taskloom.remote(**options)
        class Other: ...


def test_options_of_actors_are_refused_for_functions():
    with pytest.raises(ValueError, match="max_restarts"):

        @taskloom.remote(max_restarts=1)
        def f(): ...


@pytest.mark.parametrize("option", ["accelerator_type", "object_store_memory", "lifetime"])
def test_options_of_clusters_are_accepted_ACT_4(option):
    Worker.options(**{option: None})


# -- what an actor knows of itself --------------------------------------------------------------


def test_an_actor_knows_its_id_name_and_task_CTX_3(tl):
    worker = Worker.options(name="known", num_cpus=1).remote()
    found = tl.get(worker.__ray_call__.remote(facts))
    assert found == {
        "id": worker._actor_id.hex(),
        "name": "known",
        "task": "Worker.__ray_call__",
        "function": "Worker.__ray_call__",
        "resources": {"CPU": 1.0},
        "namespace": "here",
    }
    unnamed = tl.get(Worker.remote().__ray_call__.remote(facts))
    assert (unnamed["name"], unnamed["resources"]) == ("", {})


def test_an_actor_has_a_handle_of_itself_ACT_24(tl):
    worker = Worker.remote()
    me = tl.get(worker.__ray_call__.remote(lambda _: taskloom.get_runtime_context().current_actor))
    assert me == worker
    with pytest.raises(RuntimeError):
        _ = tl.get_runtime_context().current_actor


def test_what_an_actor_prints_has_the_name_of_its_class(tl, capfd):
    @tl.remote
    class Speaker:
        def say(self, text):
            print(text)
            return os.getpid()

    for actor in (Speaker.remote(), Speaker.options(max_concurrency=2).remote()):
        pid = tl.get(actor.say.remote("hello"))
        assert eventually(lambda pid=pid: f"(Speaker pid={pid}) hello" in printed(capfd))
