"""What tasks print arrives on the driver's streams (rows LOG of the reference)."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

PREFIX = r"\((?P<name>.+) pid=(?P<pid>\d+)\) (?P<text>.*)"


def lines(text: str) -> list[tuple[str, str]]:
    """(name, text) of each line."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(PREFIX, line)
        assert match, line
        found.append((match["name"], match["text"]))
    return found


def test_a_line_is_there_with_name_and_pid_when_get_returns_LOG_1(tl: ModuleType, capsys):
    @tl.remote
    def speak():
        import os

        print("to stdout")
        return os.getpid()

    pid = tl.get(speak.remote())
    captured = capsys.readouterr()

    match = re.fullmatch(PREFIX + "\n", captured.out)
    assert match is not None, captured
    assert match["name"].rpartition(".")[2] == "speak"
    assert (int(match["pid"]), match["text"]) == (pid, "to stdout")
    assert captured.err == ""


def test_stderr_goes_to_stderr_LOG_1(tl, capsys):
    @tl.remote(name="named")
    def speak():
        import sys

        print("to stderr", file=sys.stderr)

    tl.get(speak.remote())
    captured = capsys.readouterr()

    assert captured.out == ""
    assert lines(captured.err) == [("named", "to stderr")]


def test_what_c_code_and_children_write_arrives_too_LOG_1(tl, capfd):
    @tl.remote(name="t")
    def speak():
        import os
        import subprocess

        os.write(1, b"from the descriptor\n")
        subprocess.run(["sh", "-c", "echo from a child; echo and its error >&2"], check=True)

    tl.get(speak.remote())
    captured = capfd.readouterr()

    assert [text for _, text in lines(captured.out)] == ["from the descriptor", "from a child"]
    assert lines(captured.err) == [("t", "and its error")]


def test_lines_keep_their_order_and_each_is_there_before_its_get_returns_LOG_3(tl, capsys):
    @tl.remote(name="t")
    def speak(n):
        for k in range(20):
            print(f"{n} {k}")

    for n in range(30):
        tl.get(speak.remote(n))
        captured = capsys.readouterr()
        assert [text for _, text in lines(captured.out)] == [f"{n} {k}" for k in range(20)]


async def test_lines_of_coroutines_have_their_own_names_LOG_3(tl, capsys):
    @tl.remote
    async def speak(n):
        import asyncio

        print(f"{n} before")
        await asyncio.sleep(0.01)
        print(f"{n} after")

    import asyncio

    await asyncio.gather(*(speak.options(name=f"task {n}").remote(n) for n in range(5)))
    seen = lines(capsys.readouterr().out)

    assert sorted(seen) == sorted(
        (f"task {n}", f"{n} {when}") for n in range(5) for when in ("before", "after")
    )


def test_lines_are_there_when_wait_returns_LOG_3(tl, capsys):
    ref = tl.remote(lambda: print("spoken")).remote()
    tl.wait([ref])

    assert "spoken" in capsys.readouterr().out


def test_lines_are_there_when_the_task_fails_LOG_3(tl, capsys):
    def speak():
        print("spoken")
        raise KeyError

    with pytest.raises(KeyError):
        tl.get(tl.remote(speak).remote())

    assert "spoken" in capsys.readouterr().out


def test_lines_of_nested_tasks_are_there_too_LOG_3(tl, capsys):
    @tl.remote(name="outer")
    def outer():
        import taskloom

        taskloom.get(taskloom.remote(print).options(name="inner").remote("from inside"))
        print("from outside")

    tl.get(outer.remote())

    assert lines(capsys.readouterr().out) == [("inner", "from inside"), ("outer", "from outside")]


def test_equal_lines_of_many_tasks_are_all_there_LOG_2(tl, capsys):
    tl.get([tl.remote(print).remote("the same") for _ in range(20)])
    tl.get([tl.remote(print).remote(n) for n in range(10)])
    texts = [text for _, text in lines(capsys.readouterr().out)]

    assert texts.count("the same") == 20
    assert sorted(texts[20:]) == [str(n) for n in range(10)]


def test_a_line_without_end_and_an_empty_one_are_lines_LOG_1(tl, capsys):
    @tl.remote(name="t")
    def speak():
        print("first", end="")
        print(" and more\n\nlast", end="")

    tl.get(speak.remote())

    assert lines(capsys.readouterr().out) == [("t", "first and more"), ("t", ""), ("t", "last")]


def test_text_that_is_not_ascii_and_bytes_that_are_no_text_arrive_LOG_1(tl, capfd):
    @tl.remote(name="t")
    def speak():
        import os

        print("snow \N{SNOWMAN}", flush=True)
        os.write(1, b"\xff\xfe\n")

    tl.get(speak.remote())
    seen = lines(capfd.readouterr().out)

    assert seen[0] == ("t", "snow \N{SNOWMAN}")
    assert len(seen) == 2


def test_a_great_deal_of_output_arrives_whole_LOG_3(tl, capsys):
    @tl.remote(name="t")
    def speak():
        for n in range(20_000):
            print(n, "x" * 50)
        print("y" * 200_000)

    tl.get(speak.remote())
    seen = lines(capsys.readouterr().out)

    assert [text.split()[0] for _, text in seen[:20_000]] == [str(n) for n in range(20_000)]
    assert sum(len(text) for _, text in seen[20_000:]) == 200_000


def test_what_was_printed_before_a_crash_arrives_LOG_3(tl, capsys):
    @tl.remote(max_retries=0)
    def crash():
        import os

        print("before the crash", flush=True)
        os._exit(1)

    with pytest.raises(tl.exceptions.WorkerCrashedError):
        tl.get(crash.remote())

    assert "before the crash" in capsys.readouterr().out


def test_what_was_printed_at_the_very_end_is_not_lost_LOG_3(run_driver):
    done = run_driver(
        """
import taskloom as ray
ray.init(num_cpus=1)
ref = ray.remote(lambda: print("last words")).remote()
ray.get(ref)
"""
    )
    assert [text for _, text in lines(done.stdout)] == ["last words"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "env"), [("log_to_driver=False", {}), ("", {"RAY_LOG_TO_DRIVER": "0"})]
)
def test_workers_can_be_silenced_LOG_1(run_driver, arguments, env):
    done = run_driver(
        f"""
import sys
import taskloom as ray
ray.init({arguments})
ray.get(ray.remote(lambda: (print("x"), print("y", file=sys.stderr))).remote())
print("driver")
""",
        env=env,
    )
    assert (done.stdout, done.stderr) == ("driver\n", "")


def test_the_prefix_can_be_turned_off_LOG_1(run_driver):
    done = run_driver(
        "import taskloom as ray\nray.get(ray.remote(print).remote('bare'))\n",
        env={"RAY_DISABLE_WORKER_LOG_PREFIX": "1"},
    )
    assert (done.stdout, done.stderr) == ("bare\n", "")


def test_the_prefix_can_be_coloured_LOG_1(run_driver):
    done = run_driver(
        "import taskloom as ray\nray.get(ray.remote(print).options(name='f').remote('x'))\n",
        env={"RAY_COLOR_PREFIX": "1"},
    )
    assert re.fullmatch(r"\x1b\[36m\(f pid=\d+\)\x1b\[0m x\n", done.stdout), done


def test_a_redirected_stdout_of_the_driver_gets_the_lines_LOG_1(tl):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as stream:
        tl.get(tl.remote(print).options(name="t").remote("caught"))

    assert lines(stream.getvalue()) == [("t", "caught")]
