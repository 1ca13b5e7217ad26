"""Write the table in ``docs/backends.md`` from ``docs/backends.json``.

The JSON is what a run of the conformance suite has found (``tests/conformance``): for each
behaviour how it went on each backend.  The table is for users: how many behaviours hold where, and
all that do not, with the reason.  ``--check`` only tells whether the table is current.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "docs" / "backends.json"
PAGE: Final = ROOT / "docs" / "backends.md"
BEGIN: Final = "<!-- made by tools/backend_table.py from backends.json: begin -->"
END: Final = "<!-- end -->"
ORDER: Final = ("local", "local_mode", "ray", "dask")

Rows = Mapping[str, Mapping[str, str]]


def table(rows: Rows) -> str:
    """The Markdown of a matrix: counts by subject, then what is different on each backend."""
    backends = [name for name in ORDER if any(name in row for row in rows.values())]
    return "\n".join([_counts(rows, backends), *(_differences(rows, name) for name in backends)])


def _counts(rows: Rows, backends: list[str]) -> str:
    totals: Counter[str] = Counter()
    passed: Counter[tuple[str, str]] = Counter()
    for behaviour, row in rows.items():
        subject = behaviour.partition(":")[0]
        totals[subject] += 1
        for name in backends:
            passed[subject, name] += row.get(name) == "passed"
    lines = [
        f"| behaviours | {' | '.join(f'`{name}`' for name in backends)} |",
        f"|---|{'---:|' * len(backends)}",
    ]
    for subject in sorted(totals):
        cells = (f"{passed[subject, name]} of {totals[subject]}" for name in backends)
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    all_of = (sum(passed[subject, name] for subject in totals) for name in backends)
    lines.append(f"| all | {' | '.join(f'{n} of {len(rows)}' for n in all_of)} |")
    return "\n".join([*lines, ""])


def _differences(rows: Rows, backend: str) -> str:
    """What does not hold on a backend, those with the same reason together."""
    behaviours: dict[str, list[str]] = {}
    for behaviour, row in sorted(rows.items()):
        verdict = row.get(backend, "not tried")
        if verdict != "passed":
            behaviours.setdefault(verdict, []).append(behaviour)
    if not behaviours:
        return ""
    lines = [f"On `{backend}`:", "", "| instead | behaviour |", "|---|---|"]
    for verdict, names in behaviours.items():
        kind, _, why = verdict.partition(": ")
        instead = f"{kind}: {why}" if kind == "refused" else why or kind
        lines.append(f"| {instead} | {'; '.join(names)} |")
    return "\n".join([*lines, ""])


def with_table(page: str, text: str) -> str:
    """The page, with ``text`` between the marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} must hold the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="fail when the table is not current")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_table(page, table(json.loads(RESULTS.read_text(encoding="utf-8"))))
    if options.check and page != wanted:
        sys.exit("docs/backends.md is not what docs/backends.json says: run make backend-table")
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
