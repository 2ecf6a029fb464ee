"""Artifacts from outside, looked at without torch: what safetensors takes and we do not, and what nobody should."""

from __future__ import annotations

import io
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_core import artifact, catalog
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.errors import ArtifactError
from bpt_core.inspection import MOST_HEADER_BYTES, inspect

SPEC = catalog.find(catalog.DEFAULT_BACKBONE)
PREPROCESSING = {"image_size": SPEC.image_size, "mean": [*SPEC.mean], "std": [*SPEC.std]}


def prompt_set(depth: str = "shallow", blocks: int = 1) -> PromptSet:
    assert SPEC.fingerprint is not None
    return PromptSet(
        prompts=torch.ones(blocks, 4, SPEC.embed_dim),
        head_weight=torch.ones(2, SPEC.embed_dim),
        head_bias=torch.zeros(2),
        class_names=("daisy", "rose"),
        method={"type": "bpt-bilinear", "depth": depth, "prompts": 4, "rank": 2},
        backbone=SPEC.name,
        backbone_fingerprint=SPEC.fingerprint,
        pooling="mean-all",
        preprocessing=PREPROCESSING,
        factors={"A": torch.ones(blocks, 4, 2), "B": torch.ones(blocks, SPEC.embed_dim, 2)},
    )


DATA = artifact.to_bytes(prompt_set())
PROBE = replace(
    prompt_set(),
    prompts=None,
    factors={},
    method={"type": "linear-probe", "depth": "shallow", "prompts": 0, "rank": 0},
)


def code_of(data: bytes) -> str | None:
    try:
        inspect(data)
    except ArtifactError as error:
        return error.code
    return None


def parts(data: bytes = DATA) -> tuple[dict[str, Any], bytes]:
    """-> header, body."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def framed(header: str, body: bytes) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + body


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The artifact with another header."""
    header, body = parts()
    change(header)
    return framed(json.dumps(header), body)


def told(**facts: Any) -> bytes:
    """The artifact with other metadata."""

    def change(header: dict[str, Any]) -> None:
        header["__metadata__"]["bpt"] = json.dumps({**json.loads(header["__metadata__"]["bpt"]), **facts})

    return changed(change)


def test_what_tuning_writes_is_sound_and_says_how_many_numbers_were_trained() -> None:
    contents = inspect(DATA)
    contents.check_fits(SPEC, SPEC.fingerprint)
    assert contents.parameters(SPEC) == 4 * 2 + SPEC.embed_dim * 2
    assert contents.metadata["class_names"] == ["daisy", "rose"]
    inspect(artifact.to_bytes(prompt_set("deep", SPEC.depth))).check_fits(SPEC, SPEC.fingerprint)


def test_the_catalogue_knows_the_fingerprint_of_the_bundled_weights() -> None:
    assert catalog.known_fingerprint(None, SPEC) == load_backbone(SPEC.name).fingerprint


def test_an_artifact_is_looked_at_without_torch() -> None:
    code = "import sys; from bpt_core import inspection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def moved(count: int) -> bytes:
    """All tensors but the first begin so many bytes later: behind a hole or, with less than 0, in the one before."""
    header, body = parts()
    entries = sorted((each for name, each in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])
    for entry in entries[1:]:
        entry["data_offsets"] = [at + count for at in entry["data_offsets"]]
    return framed(json.dumps(header), (body + b"\0" * max(count, 0))[: len(body) + count])


def shrink(header: dict[str, Any]) -> None:
    header["head.bias"]["shape"] = [1]


def test_bytes_that_are_no_safetensors_are_corrupt() -> None:
    header, body = parts()
    assert code_of(b"") == code_of(b"\0" * 7) == code_of(DATA[:100]) == code_of(DATA[:-1]) == "artifact_corrupt"
    assert code_of(DATA + b"\0") == "artifact_corrupt"  # bytes left over
    assert code_of(moved(0)) is None
    assert code_of(moved(4)) == "artifact_corrupt"  # a hole
    assert code_of(moved(-4)) == "artifact_corrupt"  # an overlap
    assert code_of(changed(shrink)) == "artifact_corrupt"
    assert code_of((1 << 62).to_bytes(8, "little") + DATA[8:]) == "artifact_corrupt"
    assert code_of(framed(json.dumps(header) + " " * MOST_HEADER_BYTES, body)) == "artifact_corrupt"
    assert code_of(framed("{" * 10_000, body)) == code_of(framed("{]", body)) == "artifact_corrupt"
    assert code_of(framed('{"a": ' * 100_000, body)) == "artifact_corrupt"


def test_pickles_and_files_of_torch_are_told_apart_and_never_opened() -> None:
    file = io.BytesIO()
    torch.save({"head.bias": torch.zeros(2)}, file)
    assert code_of(file.getvalue()) == code_of(pickle.dumps([1])) == "artifact_format_unsupported"


def test_a_name_twice_and_a_tensor_without_numbers_are_refused_although_safetensors_takes_them() -> None:
    header, body = parts()
    twice = json.dumps(header)[:-1] + ', "head.bias": ' + json.dumps(header["head.bias"]) + "}"
    assert code_of(framed(twice, body)) == "artifact_schema"
    assert code_of(artifact.to_bytes(replace(PROBE, head_weight=torch.ones(2, 0)))) == "artifact_schema"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    bias = torch.tensor([0.0, number])
    assert code_of(artifact.to_bytes(replace(prompt_set(), head_bias=bias))) == "artifact_non_finite"


@pytest.mark.parametrize(
    "facts",
    [
        {"surprise": 1},
        {"format": 3},
        {"class_names": ["daisy"]},
        {"class_names": ["daisy", "daisy"]},
        {"class_names": ["daisy", 1]},
        {"class_names": ["daisy", "ro\0se"]},
        {"class_names": ["daisy", "\ud800"]},
        {"class_names": "ab"},
        {"task": "regression"},
        {"pooling": ["mean-all"]},
        {"preprocessing": None},
        {"method": None},
        {"method": {"type": "bpt-bilinear"}},
        {"method": {"type": "magic", "depth": "shallow", "prompts": 4, "rank": 2}},
        {"method": {"type": "bpt-bilinear", "depth": "shallow", "prompts": True, "rank": 2}},
        {"method": {"type": "linear-probe", "depth": "shallow", "prompts": 4, "rank": 0}},
        {"method": {"type": "vpt", "depth": "shallow", "prompts": 4, "rank": 0}},  # the factors are too much
        {"calibration": {"temperature": 0, "rejection_threshold": None, "label_thresholds": None}},
        {"calibration": {"temperature": "1", "rejection_threshold": None, "label_thresholds": None}},
        {"calibration": {"temperature": 1, "rejection_threshold": "x", "label_thresholds": None}},
        {"calibration": {"temperature": 1, "rejection_threshold": None, "label_thresholds": [0.5]}},
        {"calibration": {}},
    ],
    ids=str,
)
def test_metadata_that_cannot_be_are_refused(facts: dict[str, Any]) -> None:
    assert code_of(told(**facts)) == "artifact_schema"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"backbone_fingerprint": "f" * 64}, "other weights"),
        ({"preprocessing": {**PREPROCESSING, "image_size": 224}}, "preprocessing"),
        ({"pooling": "map"}, "attention pool"),
        ({"method": {"type": "bpt-bilinear", "depth": "deep", "prompts": 4, "rank": 2}}, "1 blocks"),
    ],
)
def test_what_was_learned_on_something_else_does_not_fit(facts: dict[str, Any], reason: str) -> None:
    contents = inspect(told(**facts))
    with pytest.raises(ArtifactError, match=reason) as caught:
        contents.check_fits(SPEC, SPEC.fingerprint)
    assert caught.value.code == "artifact_schema"


def test_a_head_of_another_width_does_not_fit() -> None:
    narrow = replace(PROBE, head_weight=torch.ones(2, 8))
    with pytest.raises(ArtifactError, match="8 numbers"):
        inspect(artifact.to_bytes(narrow)).check_fits(SPEC, SPEC.fingerprint)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(DATA) - 1 - 4 * SPEC.embed_dim), byte=st.integers(0, 255))
def test_whatever_one_wrong_byte_does_it_is_an_artifact_or_an_error_of_ours(at: int, byte: int) -> None:
    broken = bytearray(DATA)
    broken[at] = byte
    if code_of(bytes(broken)) is None:
        artifact.from_bytes(bytes(broken))
