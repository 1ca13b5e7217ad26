"""A user's first program, with loky."""

import os
import sys
import time

import loky


def square(x):
    return x * x


def where():
    time.sleep(0.1)
    return os.getpid()


if __name__ == "__main__":
    executor = loky.get_reusable_executor(max_workers=2)
    print(executor.submit(square, 7).result(), flush=True)
    if sys.argv[1:] == ["hold"]:
        pids = set()
        while len(pids) < 2:
            pids.update([f.result() for f in [executor.submit(where), executor.submit(where)]])
        print("idle", flush=True)
        sys.stdin.readline()
    executor.shutdown()
