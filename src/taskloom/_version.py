"""The version, in one place; ``__commit__`` is filled in by a release build."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
__commit__: Final = ""
