"""A user's first program, with Dask."""

import os
import sys
import time

from distributed import Client, LocalCluster


def square(x):
    return x * x


def where():
    time.sleep(0.1)
    return os.getpid()


if __name__ == "__main__":
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    client = Client(cluster)
    print(client.submit(square, 7).result(), flush=True)
    if sys.argv[1:] == ["hold"]:
        pids = set()
        while len(pids) < 2:
            pids.update(client.gather([client.submit(where, pure=False) for _ in range(2)]))
        print("idle", flush=True)
        sys.stdin.readline()
    client.close()
    cluster.close()
