"""Twenty seconds of misfortune; ``TASKLOOM_SLOW_TESTS=1`` and ``make chaos`` have more of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.scale import scaled

HERE = Path(__file__).resolve().parent
NIGHTLY = bool(os.environ.get("TASKLOOM_SLOW_TESTS"))
SECONDS = float(os.environ.get("CHAOS_S", 180 if NIGHTLY else scaled(12)))

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import chaos_run
print("seed", sys.argv[3], flush=True)
chaos_run.run(float(sys.argv[2]), int(sys.argv[3]), nested=0, mean_s=chaos_run.MEAN_S)
"""


def test_whoever_is_killed_or_stopped_all_answers_are_right_and_nothing_is_left(run_driver):
    seed = int.from_bytes(os.urandom(3))
    # A hang is what takes many times longer than it should, on a busy machine, too.
    done = run_driver(PROGRAM, args=[str(HERE), str(SECONDS), str(seed)], timeout=60 + 9 * SECONDS)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["signals"]
