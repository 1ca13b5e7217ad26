"""In which threads the workers of a Dask cluster of our own run tasks."""

from __future__ import annotations

import threading

from taskloom.backends.dask_program import MainThreadPoolExecutor


def test_whoever_is_told_of_an_end_gets_the_main_thread_for_the_next_task():
    """In another one a sleep cannot be ended: the next task could not be cancelled."""
    executor = MainThreadPoolExecutor()
    main = threading.Thread(target=executor.serve)
    threads = []

    def next_one(_future):
        executor.submit(lambda: threads.append(threading.current_thread())).add_done_callback(
            lambda _future: executor.shutdown()
        )

    executor.submit(lambda: None).add_done_callback(next_one)
    main.start()
    main.join(60)
    assert threads == [main]


def test_a_task_that_comes_while_the_main_thread_is_busy_gets_another_one():
    executor = MainThreadPoolExecutor()
    main = threading.Thread(target=executor.serve)
    main.start()
    is_inside, may_end = threading.Event(), threading.Event()

    def occupy():
        is_inside.set()
        may_end.wait(60)
        return threading.current_thread()

    first = executor.submit(occupy)
    assert is_inside.wait(60)
    second = executor.submit(threading.current_thread)
    assert second.result(60) is not main
    may_end.set()
    assert first.result(60) is main
    executor.shutdown()
    main.join(60)


def test_an_error_in_the_main_thread_is_told_and_the_next_task_runs_there():
    executor = MainThreadPoolExecutor()
    main = threading.Thread(target=executor.serve)
    main.start()
    assert isinstance(executor.submit(lambda: 1 / 0).exception(60), ZeroDivisionError)
    assert executor.submit(threading.current_thread).result(60) is main
    executor.shutdown()
    main.join(60)
