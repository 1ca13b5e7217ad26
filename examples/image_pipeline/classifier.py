"""Which digit is in the picture?

A support vector machine, trained on a part of the digits that come with scikit-learn.  A
picture is cleaned first, then turned and sheared a little in many ways, and every copy has a
vote: slower than one look and right more often.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from examples.image_pipeline.images import Picture

GLYPH: Final = 12  # a digit is looked at as 12 x 12 numbers
WORK: Final = 64  # side of the cleaned picture from which the glyphs are cut

# Every copy of a picture that has a vote: (degrees, shear).
COPIES: Final = tuple(product((-12.0, -8.0, -4.0, 0.0, 4.0, 8.0, 12.0), (-0.15, 0.0, 0.15)))

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Model:
    """What has been learned; made once, used by every worker."""

    svc: SVC
    trained_on: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The digit, and how many of the copies of the picture agree on it."""

    digit: int
    votes: int
    copies: int


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures of 8 x 8 pixels from 0 (paper) to 16 (ink), and what they show."""

    images: Array
    labels: NDArray[np.int64]


def split_digits() -> tuple[Digits, Digits]:
    """The digits to learn from, and those that the classifier must never see before the test."""
    bunch = load_digits()
    seen, unseen, seen_labels, unseen_labels = train_test_split(
        bunch.images, bunch.target, test_size=0.4, random_state=7, stratify=bunch.target
    )
    return Digits(seen, seen_labels), Digits(unseen, unseen_labels)


def train() -> Model:
    """Learn from the training part of scikit-learn's digits; takes a second or two."""
    digits, _ = split_digits()
    glyphs: list[Array] = []
    labels: list[int] = []
    for pixels, label in zip(digits.images, digits.labels, strict=True):
        small = Image.fromarray(np.pad(pixels * (255 / 16), 1).astype(np.uint8))
        ink = small.resize((WORK, WORK), Image.Resampling.BICUBIC)
        for degrees in (-10.0, 0.0, 10.0):
            glyphs.append(_glyph(_turn(ink, degrees, 0.0)))
            labels.append(int(label))
    svc = SVC(C=10.0, gamma="scale").fit(np.stack(glyphs), labels)
    return Model(svc, len(digits.images))


def classify(picture: Picture, model: Model) -> Verdict:
    """Clean the picture, look at it from many sides and let the copies vote."""
    ink = _clean(picture)
    glyphs = np.stack([_glyph(_turn(ink, degrees, shear)) for degrees, shear in COPIES])
    votes = np.bincount(model.svc.predict(glyphs), minlength=10)
    digit = int(np.argmax(votes))
    return Verdict(digit, int(votes[digit]), len(COPIES))


def _clean(picture: Picture) -> Image.Image:
    """White ink on black, without speckles and shadows, in a square of WORK pixels."""
    photo = Image.fromarray(picture.pixels)
    photo.thumbnail((256, 256), Image.Resampling.BOX)
    photo = photo.filter(ImageFilter.MedianFilter(5))
    # The paper alone: whatever is darker than its wide surroundings is ink.
    paper = photo.resize((32, 32), Image.Resampling.BOX)
    paper = paper.filter(ImageFilter.MaxFilter(11)).filter(ImageFilter.GaussianBlur(3))
    light = np.asarray(paper.resize(photo.size, Image.Resampling.BICUBIC), dtype=np.float64)
    ink = np.clip(light - np.asarray(photo, dtype=np.float64), 0.0, None)
    strongest = max(float(np.percentile(ink, 99.0)), 1.0)
    ink = np.clip(ink / strongest - 0.15, 0.0, 0.7) * (255 / 0.7)
    return Image.fromarray(ink.astype(np.uint8)).resize((WORK, WORK), Image.Resampling.BOX)


def _turn(ink: Image.Image, degrees: float, shear: float) -> Image.Image:
    """A copy, turned and sheared about the middle."""
    turned = ink.rotate(degrees, Image.Resampling.BILINEAR)
    middle = ink.height / 2
    matrix = (1.0, shear, -shear * middle, 0.0, 1.0, 0.0)
    return turned.transform(ink.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _glyph(ink: Image.Image) -> Array:
    """The written part alone, brought to one size, as a row of numbers of length one."""
    box = ink.point(lambda value: 255 if value > 64 else 0).getbbox() or (0, 0, *ink.size)
    left, top, right, bottom = box
    # A square about the middle of the ink, so that a 1 stays narrow.
    side = max(right - left, bottom - top)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    glyph = ink.transform(
        (side, side), Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BILINEAR
    ).resize((GLYPH, GLYPH), Image.Resampling.BOX)
    row = np.asarray(glyph, dtype=np.float64).ravel()
    return row / max(float(np.linalg.norm(row)), 1.0)
