"""A user's first program, with multiprocessing.Pool."""

import multiprocessing
import os
import sys
import time


def square(x):
    return x * x


def where():
    time.sleep(0.1)
    return os.getpid()


if __name__ == "__main__":
    pool = multiprocessing.get_context("forkserver").Pool(2)
    print(pool.apply_async(square, (7,)).get(), flush=True)
    if sys.argv[1:] == ["hold"]:
        pids = set()
        while len(pids) < 2:
            pids.update([r.get() for r in [pool.apply_async(where), pool.apply_async(where)]])
        print("idle", flush=True)
        sys.stdin.readline()
    pool.close()
    pool.join()
