"""Resources and the order of tasks (rows SCH of the reference), on real workers."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
from tests.gates import Gate, eventually

SESSION = {"num_cpus": 2, "num_gpus": 2, "resources": {"db": 1, "slots": 2.5}}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def test_a_session_has_the_resources_it_was_given_SCH_1(tl: ModuleType):
    total = tl.cluster_resources()

    assert {name: total[name] for name in ("CPU", "GPU", "db", "slots")} == {
        "CPU": 2.0,
        "GPU": 2.0,
        "db": 1.0,
        "slots": 2.5,
    }


def test_tasks_with_fractions_of_a_cpu_run_together_SCH_1(tl, gate):
    refs = [tl.remote(num_cpus=0.5)(gate.enter).remote() for _ in range(4)]
    pids = gate.wait_for(count=4)
    gate.open()
    tl.get(refs)

    assert len(set(pids)) == 4


def test_no_more_run_at_once_than_there_are_cpus_SCH_1(tl, gate):
    refs = [tl.remote(gate.enter).remote() for _ in range(4)]
    gate.wait_for(count=2)
    assert tl.available_resources().get("CPU") is None
    quick = tl.remote(num_cpus=0)(lambda: 1).remote()
    assert tl.get(quick) == 1  # a round trip later there are still two
    assert gate.count() == 2
    gate.open()
    tl.get(refs)


def test_a_custom_resource_of_one_lets_one_task_run_at_a_time_SCH_1(tl, gate):
    @tl.remote(num_cpus=0, resources={"db": 1})
    def use():
        gate.note("in")
        overlapping = gate.count("in") - gate.count("out") != 1
        gate.note("out")
        return overlapping

    assert not any(tl.get([use.remote() for _ in range(30)]))


def test_fractions_of_custom_resources_add_up_SCH_1(tl, gate):
    refs = [tl.remote(num_cpus=0, resources={"slots": 1.25})(gate.enter).remote() for _ in range(3)]
    gate.wait_for(count=2)
    assert "slots" not in tl.available_resources()
    assert gate.count() == 2
    gate.open()
    tl.get(refs)

    assert eventually(lambda: tl.available_resources().get("slots") == 2.5)


def test_memory_is_a_resource_like_others_SCH_1(tl, gate):
    total = tl.cluster_resources()["memory"]
    ref = tl.remote(memory=1024.7)(gate.enter).remote()
    gate.wait_for()
    assert tl.available_resources()["memory"] == total - 1024
    gate.open()
    tl.get(ref)


@pytest.mark.parametrize("name", ["CPU", "GPU"])
def test_cpus_and_gpus_are_not_custom_resources_SCH_2(tl, name):
    with pytest.raises(ValueError, match="Use the 'num_cpus' and 'num_gpus' keyword"):
        tl.remote(resources={name: 1})(lambda: 1)


def test_fifty_tasks_without_cpus_run_at_once_SCH_3(tl, gate):
    refs = [tl.remote(num_cpus=0)(gate.enter).remote() for _ in range(50)]
    pids = gate.wait_for(count=50)
    gate.open()
    tl.get(refs)

    assert len(set(pids)) == 50
    tl.shutdown()  # the next test need not have fifty workers


def test_tasks_start_in_the_order_of_submission_SCH_4(fresh, gate):
    fresh.init(num_cpus=1)

    held = fresh.remote(gate.enter).remote()
    gate.wait_for()
    path = os.path.join(gate._directory, "order.txt")

    @fresh.remote
    def write(n):
        with open(path, "a") as file:
            file.write(f"{n}\n")

    refs = [write.remote(n) for n in range(100)]
    gate.open()
    fresh.get([held, *refs])
    with open(path) as file:
        started = [int(line) for line in file]

    assert started == list(range(100))


def test_a_higher_priority_goes_first_and_equal_ones_in_order_SCH_4(fresh, gate):
    fresh.init(num_cpus=1)
    path = os.path.join(gate._directory, "order.txt")

    @fresh.remote
    def write(n):
        with open(path, "a") as file:
            file.write(f"{n} ")

    held = fresh.remote(gate.enter).remote()
    gate.wait_for()
    refs = [
        write.options(priority=priority).remote(n)
        for n, priority in enumerate([0, 5, -1, 5, 0, 10, -1])
    ]
    gate.open()
    fresh.get([held, *refs])
    with open(path) as file:
        assert file.read().split() == ["5", "1", "3", "0", "4", "2", "6"]


def test_a_task_that_does_not_fit_does_not_hold_up_those_that_do_SCH_4(tl, gate):
    held = tl.remote(gate.enter).remote()
    gate.wait_for()
    big = tl.remote(num_cpus=2)(lambda: "big").remote()
    small = tl.remote(lambda: "small").remote()

    assert tl.get(small) == "small"
    gate.open()
    assert tl.get([held, big]) == [None, "big"]


def test_a_large_task_gets_its_turn_among_endless_small_ones_SCH_4(tl):
    f = tl.remote(lambda: None)
    pending = [f.remote() for _ in range(20)]
    big = tl.remote(num_cpus=2)(lambda: "big").remote()
    for _ in range(5000):
        if big.done():
            break
        _, pending = tl.wait(pending)
        pending.append(f.remote())
    else:
        pytest.fail("the large task never ran")
    tl.get(pending)

    assert tl.get(big) == "big"


# -- GPUs ---------------------------------------------------------------------------------------


def test_tasks_at_the_same_time_see_different_gpus_SCH_7(tl, gate):
    @tl.remote(num_cpus=0, num_gpus=1)
    def see():
        import taskloom

        gate.enter()
        context = taskloom.get_runtime_context()
        return (
            os.environ["CUDA_VISIBLE_DEVICES"],
            taskloom.get_gpu_ids(),
            context.get_accelerator_ids()["GPU"],
        )

    refs = [see.remote() for _ in range(3)]
    gate.wait_for(count=2)
    assert gate.count() == 2, "there are two GPUs"
    gate.open()
    seen = tl.get(refs)

    assert sorted(visible for visible, _, _ in seen[:2]) == ["0", "1"]
    assert all(ids == [int(visible)] and names == [visible] for visible, ids, names in seen)


def test_both_gpus_go_to_a_task_that_asks_for_two_SCH_7(tl):
    see = tl.remote(num_gpus=2)(lambda: os.environ["CUDA_VISIBLE_DEVICES"])

    assert tl.get(see.remote()) == "0,1"


def test_halves_of_a_gpu_are_of_one_gpu_SCH_7(tl, gate):
    @tl.remote(num_cpus=0, num_gpus=0.5)
    def see():
        gate.enter()
        return os.environ["CUDA_VISIBLE_DEVICES"]

    refs = [see.remote() for _ in range(4)]
    gate.wait_for(count=4)
    gate.open()

    assert sorted(tl.get(refs)) == ["0", "0", "1", "1"]


def test_a_task_without_gpus_sees_what_the_driver_sees_SCH_7(run_driver):
    done = run_driver(
        """
import os
import taskloom as ray

see = ray.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
ray.init(num_cpus=1)
print(ray.cluster_resources()["GPU"])
print(ray.get([see.remote(), see.options(num_gpus=1).remote(), see.remote()]))
""",
        env={"CUDA_VISIBLE_DEVICES": "3,5"},
    )
    first, second = done.stdout.splitlines()
    assert first == "2.0", done.stderr
    assert second in ("['3,5', '3', '3,5']", "['3,5', '5', '3,5']")


def test_a_coroutine_cannot_have_a_gpu_SCH_7(tl):
    async def f():
        pass

    with pytest.raises(ValueError, match="num_gpus"):
        tl.remote(num_gpus=1)(f).remote()


def test_what_a_dead_worker_held_comes_back_SCH_1(tl):
    @tl.remote(max_retries=0, num_gpus=1, resources={"db": 1})
    def die():
        os._exit(1)

    before = tl.cluster_resources()
    for _ in range(3):
        tl.wait([die.remote()])

    assert eventually(lambda: tl.available_resources() == before)


def test_what_failed_and_cancelled_tasks_held_comes_back_SCH_1(tl, gate):
    before = tl.cluster_resources()
    failing = tl.remote(num_gpus=1)(lambda: 1 / 0).remote()
    running = tl.remote(num_gpus=1, resources={"slots": 2.5})(gate.enter).remote()
    gate.wait_for()
    tl.cancel(running)
    tl.wait([failing, running], num_returns=2)

    assert eventually(lambda: tl.available_resources() == before)
