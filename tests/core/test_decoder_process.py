"""What a decoding process may say and do, and what is made of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpt_core import decoder_process
from bpt_core.decoders import Decoders
from bpt_core.errors import ImageError
from tests.core.decoding import LONG, SOUND, answer, code, examined, frame, nothing_left, picture, saying


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("exit 0", "image_corrupt"),
        ("exit 1", "image_corrupt"),
        ("kill -KILL $$", "image_corrupt"),
        ("kill -SEGV $$", "image_corrupt"),
        ("kill -PROF $$", "image_decode_limit"),
    ],
)
def test_only_the_timer_of_the_kernel_means_that_it_took_too_long(end: str, expected: str, tmp_path: Path) -> None:
    with Decoders(1, command=saying(tmp_path, b"", end)) as decoders:
        assert code(decoders.submit(b"x")) == expected


def test_a_picture_is_tried_twice_and_not_more_often(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    with Decoders(1, command=saying(tmp_path, b"", f"echo >> {tries}; exit 1")) as decoders:
        assert code(decoders.submit(b"x")) == "image_corrupt"
    assert tries.read_text() == "\n" * 2


def test_a_process_that_did_not_start_is_started_once_more(tmp_path: Path) -> None:
    shell, option, script, said = saying(tmp_path, answer({"digest": SOUND.digest}))
    script = f"mkdir {tmp_path}/tried && exit 1; {script}"
    with Decoders(1, command=(shell, option, script, said)) as decoders:
        assert decoders.submit(b"x").result(LONG) == SOUND


def test_a_process_that_is_silent_is_killed(tmp_path: Path) -> None:
    with Decoders(1, cpu_seconds=0.02, command=saying(tmp_path, frame(b"{}")[:3], "exec sleep 1000")) as decoders:
        assert code(decoders.submit(b"x")) == "image_decode_limit"
        assert code(decoders.submit(b"y")) == "image_decode_limit"


def test_a_process_that_says_no_more_and_does_not_end_is_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_process, "_END_SECONDS", 0.01)
    with Decoders(1, command=saying(tmp_path, b"", "exec cat > /dev/null")) as decoders:
        assert code(decoders.submit(b"x")) == "image_corrupt"


ANSWERS: dict[str, bytes | dict[str, Any]] = {
    "no JSON": frame(b"{{{{"),
    "no list": frame(b"{}"),
    "no object": frame(b"[[]]"),
    "for nobody": frame(b"[]"),
    "for two": answer({"digest": SOUND.digest}, count=2),
    "deep": frame(b"[" * 60_000),
    "no text": frame(b"\xff" * 4),
    "long": struct.pack(">I", 1 << 31),
    "short": frame(b"7"),
    "a word": frame(b'"code"'),
    "a number": frame(b"77"),
    "a code of its own": {"code": "bpt_error", "detail": ""},
    "a code that is none": {"code": ["image_corrupt"], "detail": ""},
    "no detail": {"code": "image_corrupt"},
    "empty": {},
    "more bytes than a picture has": {"encoded": 1 << 40},
    "fewer than none": {"encoded": -1},
    "a large thumbnail": {"thumbnail": 1 << 30},
    "a digest that is none": {"digest": "A" * 64},
    "a short digest": {"digest": "a" * 63},
    "a format of its own": {"format": "EXE"},
    "no pixels": {"size": [0, 24]},
    "too many pixels": {"size": [8_000, 8_000]},
    "not shrunk": {"size": [400, 400]},
    "half a pixel": {"size": [2.5, 24]},
    "truth for a number": {"size": [True, 24]},
    "one side": {"size": [24]},
    "no number": {"facts": [24, 24, float("nan"), 0.1, 0.1, 1.0, 7]},
    "infinity": {"facts": [24, 24, 0.5, 0.1, float("inf"), 1.0, 7]},
    "below zero": {"facts": [24, 24, 0.5, -0.1, 0.1, 1.0, 7]},
    "a long hash": {"facts": [24, 24, 0.5, 0.1, 0.1, 1.0, 1 << 64]},
    "too few facts": {"facts": [24, 24]},
    "a whole number where there are none": {"facts": [24, 24, True, 0.1, 0.1, 1.0, 7]},
    "more pixels than there may be": {"facts": [8_000, 8_000, 0.5, 0.1, 0.1, 1.0, 7]},
    "a large original": {"facts": [50_000_001, 1, 0.5, 0.1, 0.1, 1.0, 7]},
}


def test_a_decoder_that_plays_by_the_rules_is_believed(tmp_path: Path) -> None:
    with Decoders(1, command=saying(tmp_path, 2 * answer({"digest": SOUND.digest}))) as decoders:
        assert decoders.submit(b"x").result(LONG) == SOUND
        assert decoders.submit(b"y").result(LONG) == SOUND


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_is_none_is_a_crash(what: str, tmp_path: Path) -> None:
    with Decoders(1, command=saying(tmp_path, answer(ANSWERS[what]))) as decoders:
        result = decoders.submit(b"x").result(LONG)
    assert isinstance(result, ImageError)
    assert (result.code, str(result)) == ("image_corrupt", "the decoder crashed on this picture")


@pytest.mark.parametrize("files", [{"encoded": b"<svg/>"}, {"encoded": b"GIF89a"}, {"small": b"<svg/>"}])
def test_files_that_are_no_pictures_are_not_taken_from_a_decoder(files: dict[str, Any], tmp_path: Path) -> None:
    with Decoders(1, command=saying(tmp_path, answer({"digest": SOUND.digest}, **files))) as decoders:
        assert str(decoders.submit(b"x").result(LONG)) == "the decoder crashed on this picture"


def test_the_words_of_a_decoder_are_printable_and_few(tmp_path: Path) -> None:
    said = answer({"code": "image_too_large", "detail": "\x1b[31m\u202e" + "x" * 1_000}, encoded=b"", small=b"")
    with Decoders(1, command=saying(tmp_path, said)) as decoders:
        result = decoders.submit(b"x").result(LONG)
    assert str(result) == "?[31m?" + "x" * 294


@pytest.mark.parametrize("greeting", [b"", frame(b"{}"), frame(b'{"protections": 7}')])
def test_where_no_process_greets_that_is_not_the_fault_of_pictures(greeting: bytes, tmp_path: Path) -> None:
    with Decoders(1, command=saying(tmp_path, b"", "exit 0", greeting)) as decoders:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no decoding process"):
                decoders.submit(picture()).result(LONG)


def test_where_there_is_no_program_to_start_that_is_not_the_fault_of_pictures() -> None:
    with Decoders(1, command=["/nowhere/decoder"]) as decoders, pytest.raises(FileNotFoundError):
        decoders.submit(picture()).result(LONG)


def test_pipes_that_cannot_be_made_larger_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr("bpt_core.decoder_process.fcntl.fcntl", refuse)
    with Decoders(1, command=saying(tmp_path, answer({"digest": SOUND.digest}))) as decoders:
        assert decoders.submit(b"x").result(LONG) == SOUND


def test_the_pipes_of_a_decoder_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both full at once: an answer that nobody reads yet, and the next picture half written."""
    monkeypatch.setattr(decoder_process, "_PIPE_BYTES", 4096)
    files = [picture(seed, 300) for seed in range(4)]
    with Decoders(1) as decoders:
        for data, future in [(data, decoders.submit(data)) for data in files]:
            assert future.result(LONG) == examined(data)
