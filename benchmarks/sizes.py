"""How much of everything a run does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The numbers that the questions are asked with."""

    workers: int = 2
    latency_calls: int = 2_000
    tasks: int = 10_000
    chain: int = 1_000
    leaves: int = 4_096
    outer_tasks: int = 20
    inner_calls: int = 100
    matrix_runs: int = 10
    matrix_size: int = 120
    in_flight: int = 100_000
    big_chain: int = 100_000
    big_fan: int = 100_000
    big_side: int = 1_000
    actors: int = 200
    items: int = 100_000
    array_mib: int = 100
    many: int = 10_000
    returns: int = 3_000
    huge_mib: int = 8 * 1024
    store_mib: int = 512
    spill_mib: int = 8
    no_naps: int = 2_000
    short_naps: int = 400
    long_naps: int = 40
    live_refs: int = 100_000
    backlog: int = 1_000_000
    soak: int = 10_000_000
    row_s: float = 2.0
    row_rounds: int = 4

    def of(self, question: str) -> str:
        """The size of a question in words, for its heading."""
        return {
            "get_latency": f"{self.latency_calls:,} calls",
            "await_latency": f"{self.latency_calls:,} calls",
            "noop": f"{self.tasks:,} tasks",
            "inc": f"{self.tasks:,} tasks",
            "chain": f"{self.chain:,} tasks",
            "tree": f"{self.leaves:,} leaves",
            "nested": f"{self.outer_tasks:,} x {self.inner_calls:,}",
            "matrix": f"{self.matrix_runs} runs of size {self.matrix_size}",
            "matrix_nested": f"{self.matrix_runs} runs of size {self.matrix_size}",
            "loop_lag": f"{self.in_flight:,} tasks",
            "actor_latency": f"{self.latency_calls:,} calls",
            "actor_calls": f"{self.tasks:,} calls",
            "actor_async_calls": f"{self.tasks:,} calls",
            "actor_fan": f"{self.tasks:,} calls",
            "actor_mesh": f"{self.tasks:,} calls",
            "actor_creation": f"{self.actors:,} actors",
            "stream_items": f"{self.items:,} items",
            "stream_first_item": f"{self.latency_calls:,} calls",
            "big_chain": f"{self.big_chain:,} tasks",
            "big_fan": f"{self.big_fan:,} tasks",
            "put_get": f"{self.array_mib} MiB",
            "get_mapped": f"1 and {self.array_mib} MiB",
            "broadcast": f"{self.array_mib} MiB to 20 tasks",
            "many_arguments": f"{self.many:,} refs",
            "many_returns": f"{self.returns:,} values",
            "many_gets": f"{self.many:,} refs",
            "huge": f"{self.huge_mib / 1024:g} GiB",
            "spill": f"{4 * self.store_mib:,} MiB through {self.store_mib:,} MiB",
            "mixed": f"{self.no_naps:,} x 0, {self.short_naps:,} x 1, {self.long_naps:,} x 50 ms",
            "live_refs": f"{self.live_refs:,} refs",
            "backlog": f"{self.backlog:,} tasks",
            "soak": f"{self.soak:,} tasks",
            "big_bipartite": f"{self.big_side:,} x {self.big_side:,}",
        }.get(question, "")


QUICK = Sizes(
    latency_calls=300,
    tasks=2_000,
    chain=200,
    leaves=512,
    outer_tasks=4,
    inner_calls=25,
    matrix_runs=4,
    matrix_size=60,
    in_flight=10_000,
    big_chain=10_000,
    big_fan=10_000,
    big_side=200,
    actors=20,
    items=10_000,
    array_mib=16,
    many=1_000,
    returns=300,
    huge_mib=256,
    store_mib=64,
    no_naps=200,
    short_naps=80,
    long_naps=8,
    live_refs=10_000,
    backlog=20_000,
    soak=50_000,
    row_s=0.2,
    row_rounds=2,
)
"""To see that everything works; its numbers are not worth much."""
