"""The same program, on the bare floor."""

import os
import sys
import time

from benchmarks.floor import Floor


def square(x):
    return x * x


def where():
    time.sleep(0.1)
    return os.getpid()


if __name__ == "__main__":
    floor = Floor(2)
    print(floor.get([floor.submit(square, 7)])[0], flush=True)
    if sys.argv[1:] == ["hold"]:
        pids = set()
        while len(pids) < 2:
            pids.update(floor.get([floor.submit(where), floor.submit(where)]))
        print("idle", flush=True)
        sys.stdin.readline()
    floor.close()
