"""The questions are asked for real, in processes of their own, and in very small sizes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from benchmarks import ray_microbenchmark
from benchmarks.contenders import CONTENDERS
from benchmarks.processes import CpuMeter, anonymous_bytes, voluntary_switches
from benchmarks.questions import QUESTIONS
from benchmarks.ray_rows import ROWS
from benchmarks.runner import Plan, Run, execute
from benchmarks.sizes import Sizes

SIZES = Sizes(
    no_naps=40,
    short_naps=10,
    long_naps=2,
    live_refs=1_000,
    backlog=2_000,
    soak=1_000,
    row_s=0.05,
    row_rounds=1,
)


def ask(questions: list[str], contenders: list[str]) -> Run:
    return execute(
        Plan(
            questions=[(QUESTIONS | ROWS)[name] for name in questions],
            contenders=[CONTENDERS[name] for name in contenders],
            sizes=SIZES,
            repeats=1,
            slow_repeats=1,
            time_limit_s=60.0,
        ),
        print,
    )


@pytest.mark.parametrize("question", ["mixed", "live_refs", "backlog", "soak", "ping_pong"])
def test_a_question_is_answered_with_right_results_by_all_who_are_asked(question: str):
    run = ask([question], ["taskloom", "floor"])

    for cell in run.cells[question].values():
        assert cell.failure is None
        assert bool(cell.answers) is cell.is_asked
    assert Run.from_json(run.to_json()) == run


def test_rows_of_ray_microbenchmark_are_measured_and_written_by_name():
    names = [
        "single client put calls (Plasma Store)",
        "single client tasks async",
        "1:n actor calls async",
        "1:1 async-actor calls with args async",
    ]

    run = ask(names, ["taskloom"])

    written = json.loads(json.dumps(ray_microbenchmark.as_json(run)))["rows"]
    assert list(written) == names
    for row in written.values():
        assert row["taskloom"] > 0
        assert row["ratio"] is None
    assert len(ray_microbenchmark.table(run)) == 3 + len(names)


def test_a_thread_that_sleeps_and_is_woken_is_counted():
    echo = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(50):
            before = voluntary_switches([child.pid])
            child.stdin.write("hello\n")
            child.stdin.flush()
            assert child.stdout.readline() == "hello\n"
            if sum(voluntary_switches([child.pid]).values()) > sum(before.values()):
                break
        else:
            pytest.fail("fifty answers, and it was never seen to sleep between them")
        assert anonymous_bytes(child.pid) > 100_000
        child.stdin.close()
    assert child.returncode == 0


def test_processor_time_of_a_child_counts_whether_it_was_there_before_or_not():
    burn = (
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    end = time.process_time() + 0.2\n"
        "    while time.process_time() < end: pass\n"
        "    print(flush=True)"
    )

    def burned(child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"burn\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"\n"

    command = [sys.executable, "-c", burn]
    with CpuMeter() as new:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        burned(child)
    with CpuMeter() as old:
        burned(child)
    child.communicate(b"\n")

    assert new.seconds >= 0.2
    assert old.seconds >= 0.2
