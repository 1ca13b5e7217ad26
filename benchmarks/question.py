"""What a question is: numbers with names, who may be asked, and who measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.sizes import Sizes

Answer = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of an answer."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] = "lower"
    is_main: bool = True  # compared with the others; else shown only


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, of whom, and who measures it."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    inside: Callable[[Contender, Entry, Sizes], Answer] | None = None
    outside: Callable[[str], Answer] | None = None
    only: tuple[str, ...] | None = None  # names of contenders; None: everybody
    needs_nesting: bool = False
    needs_warm_cache: bool = False  # measures imports: byte code must be cached before
    is_big: bool = False
    is_soak: bool = False  # takes minutes by itself
    time_limit_s: float = 0.0  # it may take as long, whatever the limit of the run
    most_repeats: int | None = None
    init: Callable[[Sizes], dict[str, object]] | None = None  # options of the session it needs

    def suits(self, entry: Entry) -> bool:
        """True when ``entry`` can answer it."""
        if self.only is not None and entry.name not in self.only:
            return False
        return entry.nests or not self.needs_nesting
