"""Tails of known distributions, and the paper's three products by loops."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from torch import Tensor

from bpt_core.burstiness import Burstiness, backbone_burstiness, measure


def generalised_normal(exponent: float, count: int = 200_000) -> Tensor:
    """|x|^b is Gamma(1/b)-distributed where the density of x is ~ exp(-|x|^b)."""
    torch.manual_seed(0)
    gamma = torch.distributions.Gamma(torch.tensor(1 / exponent, dtype=torch.float64), 1.0)
    return gamma.sample((count,)) ** (1 / exponent) * torch.randn(count).sign()


def numbers(found: Burstiness) -> list[float]:
    return [found.largest, found.excess_kurtosis, found.top_energy_share, found.shape_exponent, *found.histogram.edges]


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.0, 1.5, 2.0, 4.0])
def test_the_exponent_of_a_generalised_normal_is_found_whatever_its_scale(exponent: float) -> None:
    sample = generalised_normal(exponent)
    assert measure(sample).shape_exponent == pytest.approx(exponent, rel=0.04)
    assert measure(300 * sample).shape_exponent == pytest.approx(measure(sample).shape_exponent)


def test_torchs_own_gaussian_and_laplacian_have_the_exponents_two_and_one() -> None:
    torch.manual_seed(0)
    laplacian = torch.distributions.Laplace(torch.tensor(0.0), torch.tensor(3.0)).sample((200_000,))
    assert measure(torch.randn(200_000)).shape_exponent == pytest.approx(2, rel=0.03)
    assert measure(laplacian).shape_exponent == pytest.approx(1, rel=0.03)


def test_the_exponent_is_clamped() -> None:
    spike = torch.zeros(100_000)
    spike[0] = 1
    assert measure(spike).shape_exponent == pytest.approx(0.1)
    assert measure(torch.tensor([1.0, -1.0])).shape_exponent == pytest.approx(10)


def test_kurtosis_of_known_distributions() -> None:
    assert measure(torch.tensor([1.0, -1.0])).excess_kurtosis == pytest.approx(-2)
    assert measure(torch.arange(3.0)).excess_kurtosis == pytest.approx(-1.5)  # (2/3) / (2/3)^2 - 3
    assert measure(torch.linspace(4, 5, 10_001)).excess_kurtosis == pytest.approx(-1.2, abs=1e-3)  # uniform
    assert measure(generalised_normal(2)).excess_kurtosis == pytest.approx(0, abs=0.05)
    assert measure(generalised_normal(1)).excess_kurtosis == pytest.approx(3, rel=0.1)


def test_energy_share_of_the_largest_thousandth() -> None:
    values = torch.ones(30, 100)
    values.view(-1)[[5, 17, 2999, 40]] = torch.tensor([-10.0, 20.0, 30.0, 2.0])
    found = measure(values)
    assert found.top_energy_share == pytest.approx((100 + 400 + 900) / (100 + 400 + 900 + 4 + 2996))
    assert found.largest == 30
    assert measure(torch.tensor([3.0, -4.0])).top_energy_share == pytest.approx(16 / 25)  # one entry at least


def test_histogram_has_equal_bins_around_zero() -> None:
    histogram = measure(torch.tensor([-2.0, 0.0, 0.019, -0.019, 0.021, 2.0, 2.0])).histogram
    assert (histogram.edges[0], histogram.edges[-1]) == (-2, 2)
    assert histogram.edges[50:52] == pytest.approx([-2 / 101, 2 / 101])
    assert {place: count for place, count in enumerate(histogram.counts) if count} == {0: 1, 50: 3, 51: 1, 100: 2}


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=50))
def test_any_tensor_gives_finite_numbers_a_full_histogram_and_json(values: list[float]) -> None:
    found = measure(torch.tensor(values, dtype=torch.float64))
    assert all(map(math.isfinite, numbers(found)))
    assert 0.1 <= found.shape_exponent <= 10
    assert 0 <= found.top_energy_share <= 1 + 1e-9
    assert sum(found.histogram.counts) == len(values)
    assert len(found.histogram.counts) == 101
    assert found.histogram.edges == [-edge for edge in reversed(found.histogram.edges)]
    assert sorted(found.histogram.edges) == found.histogram.edges
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


@pytest.mark.parametrize(("value", "share"), [(0.0, 0.0), (0.1, 0.25), (-1e-25, 0.25), (7e30, 0.25)])
def test_a_constant_has_no_tails(value: float, share: float) -> None:
    found = measure(torch.full((2, 2), value))
    assert found.excess_kurtosis == 0
    assert found.shape_exponent == pytest.approx(10)
    assert found.top_energy_share == pytest.approx(share)
    assert sum(found.histogram.counts) == 4


def test_half_precision_is_measured_in_double() -> None:
    found = measure(torch.full((70_000,), 60_000.0, dtype=torch.float16))
    assert found.largest == 60_000
    assert found.top_energy_share == pytest.approx(0.001)


def test_products_of_a_block_are_the_papers() -> None:
    torch.manual_seed(0)
    width = 6
    block: Any = Block(width, num_heads=2, qkv_bias=True)
    tokens = torch.randn(2, 3, width)
    # What the block's own projection gives for unit vectors, without its bias, is Wq and Wk in the paper's orientation.
    projected = block.attn.qkv(torch.eye(width)) - block.attn.qkv.bias
    query, key = projected[:, :width], projected[:, width : 2 * width]
    product = torch.zeros(width, width)
    for row in range(width):
        for column in range(width):
            product[row, column] = sum(query[row, inner] * key[column, inner] for inner in range(width))
    attended = torch.einsum("ij,bnj->ibn", product, tokens)
    found = backbone_burstiness(tokens, block)
    assert list(found) == ["WqWkX", "WqWk", "X"]
    for name, expected in {"WqWkX": attended, "WqWk": product, "X": tokens}.items():
        assert numbers(found[name]) == pytest.approx(numbers(measure(expected)), rel=1e-4)
        assert sum(found[name].histogram.counts) == expected.numel()
