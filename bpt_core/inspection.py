"""Whether bytes are an artifact that can be served, found out with numpy alone: nothing is unpickled, nothing is run.

More is asked than safetensors itself asks: no name twice, no tensor without numbers, and only finite ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from bpt_core import methods
from bpt_core.catalog import BackboneSpec, Pooling
from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL
from bpt_core.errors import ArtifactError
from bpt_core.headers import METADATA_KEY
from bpt_core.methods import Depth, Method, prompted_blocks

FORMAT = 2
FIELDS = (
    "backbone",
    "backbone_fingerprint",
    "calibration",
    "class_names",
    "format",
    "method",
    "pooling",
    "preprocessing",
    "task",
)
MOST_HEADER_BYTES = 8 << 20
MOST_PROMPTS, MOST_RANK = 1000, 4096
_METHOD_FIELDS = ("depth", "prompts", "rank", "type")
_CALIBRATION_FIELDS = ("label_thresholds", "rejection_threshold", "temperature")
_UNCALIBRATED = {"label_thresholds": None, "rejection_threshold": None, "temperature": 1.0}
_ZIP, _PICKLE, _NEWEST_PICKLE = b"PK\x03\x04", 0x80, 5  # torch.save writes the former, pickle the latter

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Contents:
    """What an artifact holds, as format 2 has it. `metadata` are those of FIELDS."""

    metadata: Mapping[str, Any]
    shapes: Shapes

    @property
    def method(self) -> Mapping[str, Any]:
        """{"type", "depth", "prompts", "rank"}."""
        found: Mapping[str, Any] = self.metadata["method"]
        return found

    def parameters(self, spec: BackboneSpec) -> int:
        """Trained numbers without the head, as the paper counts."""
        method = self.method
        kind, depth = Method(method["type"]), Depth(method["depth"])
        return methods.parameter_count(kind, depth, method["prompts"], method["rank"], spec.embed_dim, spec.depth)

    def check_fits(self, spec: BackboneSpec, fingerprint: str | None) -> None:
        """ArtifactError `artifact_schema` unless it was learned on this backbone.

        `fingerprint` is that of the weights; with None it is left to those that load them.
        """
        found = self.metadata["backbone_fingerprint"]
        if fingerprint is not None and found != fingerprint:
            _refuse(f"it was learned on other weights of {spec.name} ({found[:12]}) than are here ({fingerprint[:12]})")
        width = self.shapes["head.weight"][1]
        if width != spec.embed_dim:
            _refuse(f"its head is for features of {width} numbers; {spec.name} has {spec.embed_dim}")
        if Method(self.method["type"]).has_prompts:
            blocks = self.shapes["prompts.folded"][0]
            needed = len(prompted_blocks(Depth(self.method["depth"]), spec.depth))
            if blocks != needed:
                _refuse(f"{blocks} blocks have prompts where {needed} should")
        preprocessing = {"image_size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std)}
        if self.metadata["preprocessing"] != preprocessing:
            _refuse(f"preprocessing must be {preprocessing}, which is what {spec.name} is fed")
        if self.metadata["pooling"] == Pooling.MAP and spec.pooling is not Pooling.MAP:
            _refuse(f"{spec.name} has no attention pool")


def inspect(data: bytes) -> Contents:
    """Everything that can be found out without the backbone.

    ArtifactError `artifact_format_unsupported` (a pickle, or torch's own format), `artifact_corrupt` (no safetensors:
    holes, overlaps, bytes left over), `artifact_schema` (wrong names, shapes, types), `artifact_non_finite`.
    """
    header, body = _frame(data)
    plain = header.pop("__metadata__", None)
    text = plain.get(METADATA_KEY) if isinstance(plain, dict) else None
    if not isinstance(text, str):
        _refuse(f"the header has no metadata {METADATA_KEY!r}")
    metadata = _json(text, "the metadata")
    spans = {name: _span(name, entry) for name, entry in header.items()}
    _check_tiling(list(spans.values()), len(body))
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    if metadata.get("format") == 1:
        # Shallow prompts only, without the leading number of blocks, and no calibration.
        shapes = {name: shape if name.startswith("head.") else (1, *shape) for name, shape in shapes.items()}
        metadata = {**metadata, "format": FORMAT, "calibration": _UNCALIBRATED}
    contents = Contents(metadata, shapes)
    _check_metadata(metadata)
    _check_shapes(contents)
    for name, (begin, end) in spans.items():
        if not np.isfinite(np.frombuffer(body[begin:end], "<f4")).all():
            raise ArtifactError(f"{name} holds NaN or infinity", code="artifact_non_finite")
    return contents


def _frame(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """-> the header, and what comes after it."""
    length = int.from_bytes(data[:8], "little")
    begins = data[8:9] == b"{"
    if not begins or length > len(data) - 8:
        is_pickle = len(data) > 1 and data[0] == _PICKLE and data[1] <= _NEWEST_PICKLE
        if not begins and (is_pickle or data.startswith(_ZIP)):
            raise ArtifactError("pickles are not read: send safetensors", code="artifact_format_unsupported")
        raise ArtifactError("not a prompt-set artifact: the header is not there, or not whole")
    if length > MOST_HEADER_BYTES:
        raise ArtifactError(f"the header has {length} bytes; {MOST_HEADER_BYTES} are the most")
    try:
        text = data[8 : 8 + length].decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"the header is not readable: {error}") from error
    return _json(text, "the header"), memoryview(data)[8 + length :]


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{what} is not readable: {error}") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{what} is no object")
    return found


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse("the header has a key twice")
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor lies in the body."""
    if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
        raise ArtifactError(f"{name} must have dtype, shape and data_offsets")
    offsets, shape = entry["data_offsets"], entry["shape"]
    if not _are_counts(offsets) or len(offsets) != 2 or not _are_counts(shape):
        raise ArtifactError(f"{name} has a shape or data_offsets that are no whole numbers")
    if entry["dtype"] != "F32":
        _refuse(f"{name} is {entry['dtype']} and not F32")
    if 0 in shape:
        _refuse(f"{name} has no numbers: its shape is {shape}")
    begin, end = offsets
    if end - begin != 4 * math.prod(shape):
        raise ArtifactError(f"{name} of shape {shape} cannot lie in {end - begin} bytes")
    return begin, end


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(each) is int and 0 <= each < 1 << 48 for each in values)


def _check_tiling(spans: Sequence[tuple[int, int]], size: int) -> None:
    """Every byte of the body belongs to exactly one tensor."""
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise ArtifactError("tensors overlap" if begin < reached else "there are bytes between two tensors")
        reached = end
    if reached != size:
        raise ArtifactError(f"the tensors end at byte {reached} of {size}")


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if sorted(metadata) != sorted(FIELDS):
        _refuse(f"metadata must hold exactly {', '.join(FIELDS)}")
    if metadata["format"] != FORMAT:
        _refuse(f"artifact format {metadata['format']} is not {FORMAT}")
    for name in ("backbone", "backbone_fingerprint"):
        if not _is_text(metadata[name]):
            _refuse(f"{name} must be text")
    names = metadata["class_names"]
    if not isinstance(names, list) or not names or not all(_is_text(name) for name in names):
        _refuse("class_names must be texts")
    if len(set(names)) < len(names):
        _refuse("class_names holds a name twice")
    if metadata["task"] not in (SINGLE_LABEL, MULTI_LABEL):
        _refuse(f"task must be {SINGLE_LABEL} or {MULTI_LABEL}")
    if metadata["pooling"] not in [*Pooling]:
        _refuse(f"pooling must be one of {', '.join(Pooling)}")
    if not isinstance(metadata["preprocessing"], dict):
        _refuse("preprocessing must be an object")
    _check_method(metadata["method"])
    _check_calibration(metadata["calibration"], len(names))


def _is_text(value: Any) -> bool:
    """Such as PostgreSQL can hold: without NUL and lone surrogates."""
    return isinstance(value, str) and not any(each == "\0" or "\ud800" <= each <= "\udfff" for each in value)


def _check_method(method: Any) -> None:
    if not isinstance(method, dict) or sorted(method) != sorted(_METHOD_FIELDS):
        _refuse(f"method must hold exactly {', '.join(_METHOD_FIELDS)}")
    if method["type"] not in [*Method] or method["depth"] not in [*Depth]:
        _refuse(f"there is no method {method['type']} of depth {method['depth']}")
    kind = Method(method["type"])
    for name, most, is_used in (("prompts", MOST_PROMPTS, kind.has_prompts), ("rank", MOST_RANK, kind.has_rank)):
        least, most = (1, most) if is_used else (0, 0)
        if type(method[name]) is not int or not least <= method[name] <= most:
            _refuse(f"{name} of {kind} must lie between {least} and {most}")


def _check_calibration(calibration: Any, classes: int) -> None:
    if not isinstance(calibration, dict) or sorted(calibration) != sorted(_CALIBRATION_FIELDS):
        _refuse(f"calibration must hold exactly {', '.join(_CALIBRATION_FIELDS)}")
    if not _is_number(calibration["temperature"]) or calibration["temperature"] <= 0:
        _refuse(f"a temperature cannot be {calibration['temperature']}")
    if calibration["rejection_threshold"] is not None and not _is_number(calibration["rejection_threshold"]):
        _refuse("rejection_threshold must be a number or null")
    thresholds = calibration["label_thresholds"]
    if thresholds is not None and not (
        isinstance(thresholds, list) and len(thresholds) == classes and all(_is_number(each) for each in thresholds)
    ):
        _refuse("label_thresholds must be null or a number for each class")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # which infinity is not


def _check_shapes(contents: Contents) -> None:
    method, classes, shapes = contents.method, len(contents.metadata["class_names"]), contents.shapes
    width = shapes["head.weight"][-1] if shapes.get("head.weight") else 0
    expected = {"head.weight": (classes, width), "head.bias": (classes,)}
    if method["prompts"]:
        # How many blocks are prompted is the backbone's depth; that is checked where the backbone is known.
        folded = shapes.get("prompts.folded", ())
        blocks = folded[0] if len(folded) == 3 else 1
        expected["prompts.folded"] = (blocks, method["prompts"], width)
        if method["type"] == Method.BPT_BILINEAR:
            expected["factors.A"] = (blocks, method["prompts"], method["rank"])
            expected["factors.B"] = (blocks, width, method["rank"])
    if shapes != expected:
        _refuse(f"tensors must be {expected}, not {dict(shapes)}")


def _refuse(detail: str) -> NoReturn:
    raise ArtifactError(detail, code="artifact_schema")
