"""An image as a user sent it: read it, or say in plain words why that is impossible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 40_000_000


class BadImage(Exception):
    """The file is no image that can be read.

    Raised in a worker, it reaches the program that awaits the result as this class with its
    attributes, through every task that depends on the image.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Picture:
    """Grey pixels, 0 is black."""

    name: str
    pixels: NDArray[np.uint8]


def load(path: Path) -> Picture:
    """Read an image file and decode it completely.

    Args:
        path: the file.

    Returns:
        The picture in shades of grey.

    Raises:
        BadImage: there is no file, it is no image, or a part of it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(path.name, f"it is too large ({image.width} x {image.height})")
            pixels = np.asarray(image.convert("L"))
    except UnidentifiedImageError:
        raise BadImage(path.name, "it is not an image, whatever its name says") from None
    except FileNotFoundError:
        raise BadImage(path.name, "the file is not there") from None
    # What Pillow raises for a damaged file depends on the place of the damage.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(path.name, f"the file is damaged ({error})") from error
    return Picture(path.name, pixels)
