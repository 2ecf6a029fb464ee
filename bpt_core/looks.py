"""Pictures that look wrong, each by itself or beside the others: dark, bright, blurred, empty, of unusual size.

Of 15,000 ordinary photographs of five public sets (flowers, ants and bees, insects, vehicles, dogs and cats; shorter
side 64 to 224 pixels), 0.15 % or less of each set are called dark or bright, none of low information, 0.6 % or less
blurred. Of copies blurred by a Gaussian of 1/64 of the longer side 85 % and more are found, by 1/32 all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bpt_core.archive import Tally, printable
from bpt_core.finding import Finding, Severity, many, percent
from bpt_core.pictures import Picture

LOOKS_WARNING, SIZE_WARNING = 0.01, 0.05  # shares of pictures above which info is a warning
DARK, BRIGHT = 0.25, 0.75  # luma
# By Cantelli's inequality at most a fifth of the pixels lie two standard deviations or more to one side of the mean.
DARK_BRIGHT_DEVIATIONS = 2.0
CONTRAST_MIN = 0.02  # five of 256 grey levels; of ordinary photographs the flattest had 0.037
ENTROPY_MIN = 0.2  # bits; with two grey values, one covers 97 % of the picture
# Blur is told by sharpness over the variance of luma, which brightness and contrast do not change.
BLURRED_DEVIATIONS = 3.0  # robust ones, below the median of the logarithm
BLURRED_SPREAD_MIN = 0.5  # of that logarithm, for pictures all made alike; photographs have 0.5 to 0.9
BLURRED_ALWAYS, BLURRED_NEVER = 0.01, 0.3  # ordinary photographs: 0.02 to 20, 95 % of every set above 0.19
SIZE_DEVIATIONS = 3.5  # robust ones: the cut of Iglewicz and Hoaglin (1993), "How to detect and handle outliers"
SIZE_RATIO_MIN = 9.0  # in area, three times as wide and high: less is no matter where most have one size
SIDE_MIN = 32  # pixels; below it a backbone sees mostly what enlarging made up
MAD_TO_DEVIATION = 1.4826  # times the median absolute deviation of a normal distribution: its standard deviation


def looks(pictures: Sequence[Picture]) -> Iterator[Finding]:
    brightness, contrast = fact(pictures, "brightness"), fact(pictures, "contrast")
    reach = DARK_BRIGHT_DEVIATIONS * contrast
    empty = flat(pictures)
    # Where nothing is to be seen, nothing can be blurred.
    detail = np.where(empty, np.inf, fact(pictures, "sharpness") / np.maximum(contrast, CONTRAST_MIN) ** 2)
    yield from _seen(
        pictures,
        "dark",
        np.where(brightness + reach < DARK, brightness, np.inf),
        ("brightness", "contrast"),
        ("Almost black", "Hardly anything can be seen in them. Take them again with more light, or remove them."),
    )
    yield from _seen(
        pictures,
        "bright",
        np.where(brightness - reach > BRIGHT, -brightness, np.inf),
        ("brightness", "contrast"),
        ("Almost white", "Hardly anything can be seen in them. Take them again with less light, or remove them."),
    )
    yield from _seen(
        pictures,
        "blurred",
        np.where(detail < _blurred_below(detail), detail, np.inf),
        ("sharpness", "contrast"),
        ("Blurred", "They lack the fine detail that others have. Replace them where classes differ in detail."),
    )
    yield from _seen(
        pictures,
        "low_information",
        np.where(empty, contrast, np.inf),
        ("contrast", "entropy"),
        ("Almost one colour", "They show nothing that a class could be told by. Remove them."),
    )


def flat(pictures: Sequence[Picture]) -> NDArray[np.bool_]:
    """Which pictures are almost one colour."""
    return np.asarray((fact(pictures, "contrast") < CONTRAST_MIN) | (fact(pictures, "entropy") < ENTROPY_MIN))


def _blurred_below(detail: NDArray[np.float64]) -> float:
    logarithms = np.log(np.maximum(detail[np.isfinite(detail)], 1e-9))
    if not len(logarithms):
        return BLURRED_ALWAYS
    median, deviation = _median_and_deviation(logarithms)
    below = math.exp(median - BLURRED_DEVIATIONS * max(deviation, BLURRED_SPREAD_MIN))
    return min(max(below, BLURRED_ALWAYS), BLURRED_NEVER)


def sizes(pictures: Sequence[Picture]) -> Iterator[Finding]:
    width, height = fact(pictures, "width"), fact(pictures, "height")
    area, side = np.log(width * height), np.minimum(width, height)
    median, deviation = _median_and_deviation(area)
    away = np.abs(area - median)
    unusual = away > max(SIZE_DEVIATIONS * deviation, math.log(SIZE_RATIO_MIN))
    if np.median(side) >= 2 * SIDE_MIN:
        unusual |= side < SIDE_MIN
    usual = f"{np.median(width):,.0f} x {np.median(height):,.0f}"
    yield from _seen(
        pictures,
        "unusual_size",
        np.where(unusual, -away, np.inf),
        ("width", "height"),
        (
            "Of unusual size",
            f"Most have about {usual} pixels; others often come from elsewhere (icons, scans) and look different. "
            "Look at them, and remove or replace those that do not belong.",
        ),
        warning=SIZE_WARNING,
    )


def _seen(
    pictures: Sequence[Picture],
    code: str,
    rank: NDArray[np.float64],
    facts: Sequence[str],
    words: tuple[str, str],
    *,
    warning: float = LOOKS_WARNING,
) -> Iterator[Finding]:
    """A finding about those pictures whose rank is finite, the lowest first; none where there are none."""
    found = [pictures[index] for index in np.argsort(rank, kind="stable")[: np.isfinite(rank).sum()]]
    if not found:
        return
    items, share = Tally(), len(found) / len(pictures)
    for picture in found:
        shown = {name: float(f"{getattr(picture.facts, name):.4g}") for name in facts}
        items.add(item=picture.id, entry=printable(picture.path), **shown)
    yield Finding(
        code,
        Severity.WARNING if share > warning else Severity.INFO,
        f"{words[0]}: {many(len(found), 'picture')}, {percent(share)} of all. {words[1]}",
        items,
        frozenset(picture.id for picture in found),
        share,
    )


def fact(pictures: Sequence[Picture], name: str) -> NDArray[np.float64]:
    return np.array([getattr(picture.facts, name) for picture in pictures], dtype=np.float64)


def _median_and_deviation(values: NDArray[np.float64]) -> tuple[float, float]:
    """The median, and a standard deviation that outliers hardly change."""
    median = float(np.median(values))
    return median, MAD_TO_DEVIATION * float(np.median(np.abs(values - median)))
