"""Interrupts that reach the main thread of a worker, whatever it is about to do."""

from __future__ import annotations

PROGRAM = """\
import _thread, threading, time
from taskloom.backends import cluster_limits

lost = 0
wake = cluster_limits._wake_main

def lose_three():
    global lost
    lost += 1
    if lost > 3:
        wake()

cluster_limits._wake_main = lose_three
cluster_limits.notice_interrupts()
timer = threading.Timer(0.2, _thread.interrupt_main)
timer.start()
began = time.monotonic()
try:
    time.sleep(60)
except KeyboardInterrupt:
    print(lost, time.monotonic() - began < 30)
"""


def test_an_interrupt_is_noticed_also_when_the_first_signals_come_before_the_sleep(run_driver):
    assert run_driver(PROGRAM, timeout=60).stdout == "4 True\n"
