"""Tensors of the Open Inference Protocol: round trips, the client's own code as the other side, hostile input."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.utils as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from api import tensors
from api.tensors import TensorError

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)
FLOATS = arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
PIXELS = arrays.arrays(np.uint8, SHAPES)
TEXTS = st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=5)


def strings(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.array(texts, np.object_)


@settings(deadline=None)
@given(FLOATS)
def test_floats_survive_both_forms(array: np.ndarray[Any, Any]) -> None:
    shape = list(array.shape)
    binary = memoryview(tensors.to_binary(array))
    np.testing.assert_array_equal(tensors.numbers_of_binary(binary, "FP32", shape), array)
    for data in (tensors.to_json(array), array.tolist()):
        np.testing.assert_array_equal(tensors.numbers_of_json(data, "FP32", shape), array)


@settings(deadline=None)
@given(PIXELS)
def test_pixels_are_read_flat_nested_and_in_binary(array: np.ndarray[Any, Any]) -> None:
    shape = list(array.shape)
    for found in (
        tensors.numbers_of_json(array.ravel().tolist(), "UINT8", shape),
        tensors.numbers_of_json(array.tolist(), "UINT8", shape),
        tensors.numbers_of_binary(memoryview(array.tobytes()), "UINT8", shape),
    ):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == np.uint8


@settings(deadline=None)
@given(TEXTS)
def test_strings_are_written_as_the_client_reads_them(texts: list[str]) -> None:
    binary = tensors.to_binary(strings(texts))
    assert [each.decode() for each in triton.deserialize_bytes_tensor(binary)] == texts
    assert tensors.to_json(strings(texts)) == texts


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_strings_are_read_as_the_client_writes_them(elements: list[bytes]) -> None:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    binary = triton.serialize_byte_tensor(array).item()
    assert tensors.strings_of_binary(memoryview(binary), len(elements)) == elements


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(1, 8))
def test_any_bytes_are_strings_or_refused(data: bytes, count: int) -> None:
    try:
        found = tensors.strings_of_binary(memoryview(data), count)
    except TensorError:
        return
    assert b"".join(struct.pack("<I", len(each)) + each for each in found) == data
    assert len(found) == count


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(JSON, max_size=6), st.sampled_from(["UINT8", "FP32"]), st.lists(st.integers(1, 4), min_size=1))
def test_any_json_is_a_tensor_of_that_shape_or_refused(data: list[Any], datatype: str, shape: list[int]) -> None:
    try:
        found = tensors.numbers_of_json(data, datatype, shape)
    except TensorError:
        return
    assert (list(found.shape), found.dtype) == (shape, tensors.NUMBERS[datatype])


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),
        (b"\x01\x00\x00", 1),
        (b"\x05\x00\x00\x00abcd", 1),
        (b"\xff\xff\xff\xffabcd", 1),
        (b"\x01\x00\x00\x00ab", 1),
        (b"\x01\x00\x00\x00a", 2),
        (b"\x00\x00\x00\x00" * 3, 2),
    ],
    ids=["nothing", "half a length", "one byte short", "4 GB announced", "one byte over", "one element short", "over"],
)
def test_lengths_that_lie_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(TensorError):
        tensors.strings_of_binary(memoryview(data), count)


@pytest.mark.parametrize(
    ("datatype", "shape", "size"),
    [
        ("FP32", [2], 7),
        ("FP32", [2], 9),
        ("FP32", [2], 2),
        ("UINT8", [2**31 - 1] * 8, 16),
        ("UINT8", [2**32, 2**32], 0),  # 2^64, which is 0 in 64 bits
        ("FP32", [2**62], 0),
    ],
)
def test_a_binary_tensor_of_another_size_is_refused_and_nothing_allocated(
    datatype: str, shape: list[int], size: int
) -> None:
    with pytest.raises(TensorError):
        tensors.numbers_of_binary(memoryview(bytes(size)), datatype, shape)


@pytest.mark.parametrize(
    ("datatype", "data", "shape"),
    [
        ("UINT8", [256], [1]),
        ("UINT8", [-1], [1]),
        ("UINT8", [10**400], [1]),
        ("UINT8", [1.0], [1]),
        ("UINT8", [True], [1]),
        ("UINT8", ["1"], [1]),
        ("FP32", ["1.5"], [1]),
        ("FP32", [None], [1]),
        ("FP32", [True], [1]),
        ("FP32", [{}], [1]),
        ("FP32", [10**400], [1]),
        ("FP32", [1.0, 2.0], [3]),
        ("FP32", [], [2**31 - 1] * 4),
        ("FP32", [[1.0, 2.0], [3.0]], [2, 2]),
        ("FP32", [[1.0, 2.0, 3.0, 4.0]], [2, 2]),
        ("FP32", [[1.0, 2.0], 3.0], [2, 2]),
        ("FP32", [1.0, [2.0]], [2]),
        ("FP32", [[[1.0, 2.0]]], [1, 2]),
        ("FP32", ["x" * 1_000_000, *[0.0] * 999_999], [1000, 1000]),  # numpy would make a terabyte of this
    ],
)
def test_json_that_is_no_such_tensor_is_refused(datatype: str, data: list[Any], shape: list[int]) -> None:
    with pytest.raises(TensorError):
        tensors.numbers_of_json(data, datatype, shape)


def test_a_double_too_large_for_a_float_is_infinite_and_for_others_to_refuse() -> None:
    assert np.isinf(tensors.numbers_of_json([1e300], "FP32", [1])).all()
