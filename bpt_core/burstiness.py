"""How heavy the tails of a tensor's entries are: the paper's Figure 1 in numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bpt_core.whitening import query_key_product

TOP_SHARE = 0.001
HISTOGRAM_BINS = 101  # odd: the middle bin is centred on zero
EXPONENT_BOUNDS = (0.1, 10.0)


@dataclass(frozen=True)
class Histogram:
    """`edges` ascend in equal steps from -largest to largest; counts[i] entries lie between edges i and i + 1.

    Of all zeros `largest` counts as 1.
    """

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Burstiness:
    """`largest` is max |x|, in the tensor's own unit; `excess_kurtosis` is 0 for a Gaussian, 3 for a Laplacian.

    `top_energy_share` is the share of the sum of squares that the largest 0.1 % of the entries hold (one entry at
    least). `shape_exponent` is that of a fitted generalised normal, density ~ exp(-|x / a|^b): 2 Gaussian,
    1 Laplacian, < 1 hyper-Laplacian; clamped to 0.1 .. 10.
    """

    largest: float
    excess_kurtosis: float
    top_energy_share: float
    shape_exponent: float
    histogram: Histogram

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(values: Tensor) -> Burstiness:
    """values of any shape, at least one. A constant has no tails: kurtosis 0 and the greatest exponent."""
    entries = values.detach().double().flatten()
    largest = float(entries.abs().max())
    relative = entries / (largest or 1.0)  # the powers of small numbers would vanish
    squares = relative.square()
    energy = float(squares.sum())
    top = squares.topk(max(1, int(TOP_SHARE * len(entries)))).values
    return Burstiness(
        largest=largest,
        excess_kurtosis=_excess_kurtosis(relative),
        top_energy_share=float(top.sum()) / energy if energy else 0.0,
        shape_exponent=_shape_exponent(energy / len(entries), float(relative.abs().mean())),
        histogram=_histogram(relative, largest or 1.0),
    )


def backbone_burstiness(tokens: Tensor, block: Any) -> dict[str, Burstiness]:
    """Patch tokens [B, n, d] entering a timm block -> Wq Wk^T X^T [d, B n], Wq Wk^T [d, d] and X [B n, d]."""
    product = query_key_product(block)
    rows = tokens.detach().double().flatten(0, 1)
    return {"WqWkX": measure(product @ rows.T), "WqWk": measure(product), "X": measure(rows)}


def _excess_kurtosis(entries: Tensor) -> float:
    """entries [N] -> fourth central moment / variance^2 - 3."""
    if bool((entries == entries[0]).all()):  # rounding of the mean would divide noise by noise
        return 0.0
    squares = (entries - entries.mean()).square()
    return float(squares.square().mean() / squares.mean().square()) - 3


def _shape_exponent(mean_square: float, mean_magnitude: float) -> float:
    """The b at which a generalised normal around zero has the sample's E|x|^2 / (E|x|)^2.

    Method of moments: E|x|^2 / (E|x|)^2 = Gamma(1/b) Gamma(3/b) / Gamma(2/b)^2 (Mallat 1989, "A theory for
    multiresolution signal decomposition"), which falls as b grows.
    """
    low, high = EXPONENT_BOUNDS
    if mean_magnitude == 0:
        return high
    ratio = math.log(mean_square) - 2 * math.log(mean_magnitude)
    for _ in range(60):
        middle = (low + high) / 2
        expected = math.lgamma(1 / middle) + math.lgamma(3 / middle) - 2 * math.lgamma(2 / middle)
        low, high = (middle, high) if expected > ratio else (low, middle)
    return (low + high) / 2


def _histogram(relative: Tensor, reach: float) -> Histogram:
    """relative [N] within -1 .. 1, in units of `reach`."""
    counts = torch.histc(relative, bins=HISTOGRAM_BINS, min=-1, max=1)
    edges = [reach * ((2 * edge - HISTOGRAM_BINS) / HISTOGRAM_BINS) for edge in range(HISTOGRAM_BINS + 1)]
    return Histogram(edges=edges, counts=[int(count) for count in counts.tolist()])
