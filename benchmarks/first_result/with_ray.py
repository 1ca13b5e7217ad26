"""A user's first program, with Ray."""

import os
import sys
import time

import ray


@ray.remote
def square(x):
    return x * x


@ray.remote
def where():
    time.sleep(0.1)
    return os.getpid()


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    print(ray.get(square.remote(7)), flush=True)
    if sys.argv[1:] == ["hold"]:
        pids = set()
        while len(pids) < 2:
            pids.update(ray.get([where.remote(), where.remote()]))
        print("idle", flush=True)
        sys.stdin.readline()
    ray.shutdown()
