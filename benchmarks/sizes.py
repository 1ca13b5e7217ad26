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
            "big_chain": f"{self.big_chain:,} tasks",
            "big_fan": f"{self.big_fan:,} tasks",
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
)
"""To see that everything works; its numbers are not worth much."""
