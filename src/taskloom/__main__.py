"""``python -m taskloom <command>``."""

from __future__ import annotations

import argparse
import sys

from taskloom._version import __version__
from taskloom.cli import doctor


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m taskloom")
    parser.add_argument("--version", action="version", version=f"taskloom {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    doctor.add_to(commands)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
