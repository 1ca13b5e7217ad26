"""Who gets another attempt."""

from __future__ import annotations

from taskloom._core.node import Node


def may_retry(node: Node) -> bool:
    """True when the budget allows one more attempt after the one that has just failed.

    ``max_retries`` counts attempts after the first; -1 never ends.  Crashes of the worker and,
    where the user asked for it, exceptions draw on the same budget (REM-16, REM-17).
    """
    budget = node.spec.max_retries
    return budget < 0 or node.attempt <= budget
