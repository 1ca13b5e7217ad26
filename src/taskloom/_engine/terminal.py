"""What a terminal would obey, made visible: tasks print whatever their data holds.

A line may colour its text, go back to its beginning and step back, as progress bars do.  All else
(moving about, titles, the clipboard, questions that the terminal answers on its input) is shown
as an escape.  Files and pipes get every byte as it is.
"""

from __future__ import annotations

import re
from typing import Final

# A colour (SGR), or a control character: C0 without backspace, tab, newline and carriage return;
# DEL; C1.
_ORDER: Final = re.compile(r"(\x1b\[[0-9;:]*m)|[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_RESET: Final = "\x1b[0m"
_PLAIN: Final = frozenset({_RESET, "\x1b[m"})


def is_terminal(stream: object) -> bool:
    """True when what is written to ``stream`` is obeyed by a terminal."""
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]  # None, or the user's own
    except Exception:
        return False  # closed, or no stream at all: writing to it will tell


def harmless(text: str) -> str:
    """``text`` for a terminal; colours end with it."""
    colour = _RESET

    def shown(match: re.Match[str]) -> str:
        nonlocal colour
        if match[1] is None:
            return f"\\x{ord(match[0]):02x}"
        colour = match[1]
        return colour

    text = _ORDER.sub(shown, text)
    return text if colour in _PLAIN else text + _RESET
