"""Tensors of the Open Inference Protocol, as JSON and as its binary extension has them. Knows nothing of HTTP.

What is read was written by anyone: nothing is allocated by what a shape or a length announces, only by what is there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTES = "BYTES"
NUMBERS: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("|u1"), "FP32": np.dtype("<f4")}

_LENGTH = struct.Struct("<I")


class TensorError(ValueError):
    """What came is no such tensor; the text is for whoever sent it."""


def strings_of_binary(binary: memoryview, count: int) -> list[bytes]:
    """BYTES: `count` elements, each behind its length. Raises TensorError unless that is all there is."""
    found, at = [], 0
    for index in range(count):
        if len(binary) - at < _LENGTH.size:
            raise TensorError(f"the data ends before element {index} of {count}")
        (length,) = _LENGTH.unpack_from(binary, at)
        at += _LENGTH.size
        if len(binary) - at < length:
            raise TensorError(f"element {index} announces {length} bytes, and {len(binary) - at} are left")
        found.append(bytes(binary[at : at + length]))
        at += length
    if at < len(binary):
        raise TensorError(f"{len(binary) - at} bytes are left behind the last of {count} elements")
    return found


def numbers_of_binary(binary: memoryview, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """A view of the binary form of a datatype in NUMBERS. Raises TensorError where sizes disagree."""
    dtype, needed = NUMBERS[datatype], math.prod(shape) * NUMBERS[datatype].itemsize
    if len(binary) != needed:
        raise TensorError(f"{datatype} {list(shape)} takes {needed} bytes, and {len(binary)} came")
    return np.frombuffer(binary, dtype).reshape(shape)


def numbers_of_json(data: list[Any], datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """`data` is flat in row-major order, or nested as `shape` is. Raises TensorError."""
    flat = data
    if _is_nested(flat):
        for axis, length in enumerate(shape):
            # From the outermost list inwards: as many lists as the axes before have places, each as long as its axis.
            lists = flat if axis else [flat]
            if any(type(each) is not list or len(each) != length for each in lists):
                raise TensorError(f"the data is not nested as {list(shape)}")
            flat = list(chain.from_iterable(lists))
    if len(flat) != math.prod(shape):
        raise TensorError(f"{list(shape)} has {math.prod(shape)} elements, and {len(flat)} came")
    dtype = NUMBERS[datatype]
    # By exact type: numpy would take true for 1 and "1.5" for 1.5.
    if not set(map(type, flat)) <= ({int} if dtype.kind == "u" else {int, float}):
        raise TensorError(f"the data holds what is no {datatype}")
    try:
        with np.errstate(over="ignore"):  # becomes infinite
            return np.array(flat, dtype).reshape(shape)
    except OverflowError:
        raise TensorError(f"the data holds what does not fit {datatype}") from None


def datatype_of(tensor: NDArray[Any]) -> str:
    """Of a tensor to be written: float32, or object for strings."""
    return BYTES if tensor.dtype == np.object_ else "FP32"


def to_json(tensor: NDArray[Any]) -> list[Any]:
    """Flat, in row-major order."""
    flat: list[Any] = tensor.ravel().tolist()
    return flat


def to_binary(tensor: NDArray[Any]) -> bytes:
    if datatype_of(tensor) == BYTES:
        encoded = [text.encode() for text in to_json(tensor)]
        return b"".join(_LENGTH.pack(len(each)) + each for each in encoded)
    return tensor.astype(NUMBERS["FP32"]).tobytes()


def _is_nested(data: list[Any]) -> bool:
    return bool(data) and type(data[0]) is list
