"""The folder of images that users have sent: photographs of digits, made for the demo.

Every digit is one that the classifier was not trained on.  It is drawn large on paper, a little
askew, unevenly lit and grainy, as a photograph of a note would be.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from examples.image_pipeline.classifier import Array, split_digits

PHOTO: Final = 320  # pixels
LABELS: Final = "labels.csv"


def write_photos(folder: Path, count: int, broken: int) -> None:
    """Fill ``folder`` with ``count`` photographs and ``broken`` files that are none.

    The same arguments give the same files.  What the photographs show is written to a file
    beside them, for the accuracy in the table; the classifier does not see it.
    """
    _, unseen = split_digits()
    chance = np.random.default_rng(2024)
    spoiled = set(_spread(broken, count + broken))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LABELS).open("w", newline="") as file:
        labels = csv.writer(file)
        labels.writerow(["image", "digit"])
        drawn = 0
        for number in range(1, count + broken + 1):
            path = folder / f"photo-{number:03d}.png"
            which = drawn % len(unseen.images)
            photo = _photograph(unseen.images[which], chance)
            if number not in spoiled:
                photo.save(path, compress_level=1)
                labels.writerow([path.name, int(unseen.labels[which])])
                drawn += 1
            elif len(spoiled) % 2:
                path.write_text("Dear all, here is my image. Oh, I forgot to attach it.\n")
                spoiled.remove(number)
            else:
                photo.save(path)
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
                spoiled.remove(number)


def read_labels(folder: Path) -> dict[str, int]:
    """What the images of a folder show, by file name; empty where nobody has written it down."""
    path = folder / LABELS
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["image"]: int(row["digit"]) for row in csv.DictReader(file)}


def _spread(some: int, total: int) -> list[int]:
    """``some`` numbers of 1 to ``total``, evenly apart."""
    return [(2 * place + 1) * total // (2 * some) + 1 for place in range(some)]


def _photograph(pixels: Array, chance: np.random.Generator) -> Image.Image:
    """One digit of 8 x 8 numbers as it looks on a photographed sheet of paper."""
    side = int(PHOTO * chance.uniform(0.65, 0.85))
    small = Image.fromarray(np.pad(pixels * (255 / 16), 1).astype(np.uint8))
    digit = small.resize((side, side), Image.Resampling.BICUBIC)
    ink = Image.new("L", (PHOTO, PHOTO))
    room = PHOTO - side
    ink.paste(digit, (int(room * chance.uniform(0.3, 0.7)), int(room * chance.uniform(0.3, 0.7))))
    ink = ink.rotate(chance.uniform(-12, 12), Image.Resampling.BICUBIC)

    across, down = np.meshgrid(np.linspace(-1, 1, PHOTO), np.linspace(-1, 1, PHOTO))
    tilt = chance.uniform(-25, 25, size=2)
    paper = 215 + tilt[0] * across + tilt[1] * down
    photo = paper - np.asarray(ink, dtype=np.float64) * chance.uniform(0.45, 0.7)
    photo += chance.normal(0, 9, photo.shape)
    specks = chance.random(photo.shape) < 0.004
    photo[specks] = chance.integers(0, 255, int(specks.sum()))
    return Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8))
