"""A user's first program, with taskloom."""

import os
import sys
import time

import taskloom


@taskloom.remote
def square(x):
    return x * x


@taskloom.remote
def where():
    time.sleep(0.1)
    return os.getpid()


if __name__ == "__main__":
    taskloom.init(num_cpus=2)
    print(taskloom.get(square.remote(7)), flush=True)
    if sys.argv[1:] == ["hold"]:
        pids = set()
        while len(pids) < 2:
            pids.update(taskloom.get([where.remote(), where.remote()]))
        print("idle", flush=True)
        sys.stdin.readline()
    taskloom.shutdown()
