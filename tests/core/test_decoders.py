from __future__ import annotations

import random
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import psutil
import pytest
from PIL import Image

from bpt_core import samples
from bpt_core.decoder import Options
from bpt_core.decoder_process import COMMAND
from bpt_core.decoders import Decoders, _Job
from bpt_core.errors import ImageError
from bpt_core.pictures import Canonical
from tests.core.decoding import (
    LONG,
    SOUND,
    answer,
    children,
    code,
    decoding,
    encoded,
    examined,
    frame,
    nothing_left,
    picture,
    saying,
)

CODES = {"image_animated", "image_corrupt", "image_decode_limit", "image_too_large", "image_unsupported"}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def same(first: Canonical | ImageError, second: Canonical | ImageError) -> bool:
    if isinstance(first, ImageError) and isinstance(second, ImageError):
        return (first.code, str(first)) == (second.code, str(second))
    return first == second


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_process_gives_what_a_thread_gives() -> None:
    files = [
        encoded(samples.draw(3, 1), "JPEG"),
        encoded(samples.draw(4, 2).resize((700, 500)), "WEBP"),
        encoded(samples.draw(5, 3), "AVIF"),
        encoded(samples.draw(6, 4), "GIF"),
        b"<svg/>",
        b"",
        picture()[:-20],
    ]
    with Decoders(1) as processes, Decoders(0) as threads:
        for data in files:
            found = processes.submit(data).result(LONG)
            assert same(found, threads.submit(data).result(LONG))
            assert same(found, examined(data))
        assert "limits" in processes.protections
        assert not threads.protections


@pytest.mark.parametrize("count", [0, 1])
def test_the_options_are_those_that_were_given(count: int) -> None:
    gif = encoded(samples.draw(1, 1), "GIF")
    with Decoders(count, short_side=20, pixel_limit=9_999, first_frame=True) as decoders:
        found = decoders.submit(gif).result(LONG)
        assert isinstance(found, Canonical)
        assert (found.size, found.facts.width) == ((20, 20), 96)
        assert code(decoders.submit(picture(side=100))) == "image_too_large"


def test_each_picture_has_its_own_answer_whatever_its_size() -> None:
    sides = [400, 8, 350, 8, 8, 300, 8]  # 480 KB and 200 bytes; answers of 300 KB and 200 bytes
    files = [picture(seed, side) for seed, side in enumerate(sides)]
    with Decoders(2) as decoders:
        futures = [decoders.submit(data) for data in files]
        for data, future in zip(files, futures, strict=True):
            assert future.result(LONG) == examined(data)
        assert len(children()) == 2


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = int(chance.random() ** 2 * len(changed))  # headers are the brittle part
        match chance.randrange(4):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at : at + chance.randint(1, 40)] = b""
            case 2:
                changed[at:at] = chance.randbytes(chance.randint(1, 40))
            case _:
                changed[at : at + 4] = chance.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"])
        changed = changed or bytearray(data)
    return bytes(changed)


@pytest.mark.parametrize("first_frame", [False, True])
def test_damaged_files_of_every_format_are_a_picture_or_an_error_and_confining_changes_neither(
    first_frame: bool,
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    image, other = samples.draw(7, 7), samples.draw(8, 8)
    sound = [encoded(image, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    sound += [encoded(image, kind) for kind in ("BMP", "GIF")]
    sound += [encoded(image, kind, save_all=True, append_images=[other]) for kind in ("GIF", "PNG", "WEBP", "MPO")]
    sound += [encoded(image.convert("CMYK"), "TIFF", compression="tiff_lzw"), encoded(image.convert("P"), "PNG")]
    chance = random.Random(20 + first_frame)
    files = sound + [mutated(data, chance) for data in sound for _ in range(4)]
    with Decoders(1, first_frame=first_frame, pixel_limit=2_000_000) as decoders:
        for data, future in [(data, decoders.submit(data)) for data in files]:
            result = future.result(LONG)
            assert isinstance(result, Canonical) or result.code in CODES
            # Pillow names memory addresses in some messages.
            expected = examined(data, first_frame=first_frame, pixel_limit=2_000_000)
            assert getattr(result, "code", result) == getattr(expected, "code", expected)


@pytest.fixture(scope="module")
def large() -> bytes:
    """49 million pixels in a few kilobytes: some tenths of a second of CPU time and 250 MB."""
    return encoded(Image.new("1", (7_000, 7_000)), compress_level=1)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_picture_that_takes_too_much_cpu_time_is_a_decode_limit_and_the_next_is_fine(
    large: bytes, request: pytest.FixtureRequest
) -> None:
    # Whether this process cares for the signal must not matter, and it is inherited.
    request.addfinalizer(partial(signal.signal, signal.SIGPROF, signal.signal(signal.SIGPROF, signal.SIG_IGN)))
    with Decoders(1, cpu_seconds=0.1) as decoders:
        # Ten times as long on the clock is a limit, too: on a busy machine either may come first.
        futures = [decoders.submit(data) for data in (picture(1), large, picture(2))]
        assert [getattr(future.result(LONG), "code", "") for future in futures] == ["", "image_decode_limit", ""]


def test_cpu_time_is_counted_for_each_picture(tmp_path: Path) -> None:
    """The long one is a single call into C: no handler in Python would be asked."""
    burn = "data == b'burn' and hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30); begun = time.process_time()\n"
    burn += "    while time.process_time() < begun + 0.08: pass"
    with Decoders(1, cpu_seconds=0.2, command=decoding(tmp_path, burn)) as decoders:
        decoders.submit(picture()).result(LONG)
        (process,) = children()
        futures = [decoders.submit(picture(seed)) for seed in range(6)]  # five of them travel together
        assert all(isinstance(future.result(LONG), Canonical) for future in futures)
        assert children() == [process]
        futures = [decoders.submit(b"burn"), decoders.submit(picture())]
        assert code(futures[0]) == "image_decode_limit"
        assert isinstance(futures[1].result(LONG), Canonical)


def test_a_picture_that_takes_too_much_memory_is_a_decode_limit_and_the_process_lives_on(large: bytes) -> None:
    with Decoders(1, memory_bytes=250 << 20) as decoders:
        assert isinstance(decoders.submit(picture()).result(LONG), Canonical)
        before = children()
        assert code(decoders.submit(large)) == "image_decode_limit"
        assert isinstance(decoders.submit(picture()).result(LONG), Canonical)
        assert children() == before


def test_running_out_of_memory_outside_of_decoding_is_a_decode_limit(
    tmp_path: Path,
) -> None:
    with Decoders(1, command=decoding(tmp_path, "data == b'grow' and bytearray(1 << 40)")) as decoders:
        assert code(decoders.submit(b"grow")) == "image_decode_limit"


def test_a_file_that_would_fill_the_memory_is_not_even_sent() -> None:
    with Decoders(1, memory_bytes=200) as decoders:
        assert code(decoders.submit(bytes(101))) == "image_decode_limit"
        assert not children()


# --- deaths ----------------------------------------------------------------------------------------------------------


def test_a_crash_is_tried_once_more_and_then_the_fault_of_the_picture(tmp_path: Path) -> None:
    with Decoders(
        1, command=decoding(tmp_path, "if data == b'crash': os.kill(os.getpid(), signal.SIGKILL)")
    ) as decoders:
        futures = [decoders.submit(data) for data in (picture(1), b"crash", picture(2), b"none")]
        results = [future.result(LONG) for future in futures]
    assert [getattr(each, "code", "") for each in results] == ["", "image_corrupt", "", "image_unsupported"]
    assert str(results[1]) == "the decoder crashed on this picture"


def test_processes_start_when_they_are_needed_and_not_before() -> None:
    with Decoders(2) as decoders:
        assert not children()
        for seed in range(3):
            decoders.submit(picture(seed)).result(LONG)
        assert len(children()) == 1


def test_small_pictures_travel_together_but_not_those_that_another_thread_is_about_to_take() -> None:
    decoders = Decoders(2)
    jobs = [_Job(b"", Future()) for _ in range(60)]
    busy, idle = deque([jobs[:1]]), deque[list[_Job]]()
    decoders._taken += [busy, idle]
    decoders._jobs.extend(jobs[1:2])
    assert decoders._take(busy)
    assert list(busy) == [jobs[:1]]
    decoders._jobs.extend(jobs[2:4])
    assert decoders._take(busy)
    assert list(busy) == [jobs[:1], jobs[1:3]]
    decoders._jobs.extend(jobs[4:])
    assert decoders._take(busy)
    assert list(busy) == [jobs[:1], jobs[1:3]], "these are sent already"
    busy.popleft()
    assert decoders._take(busy)
    assert list(busy) == [jobs[1:3], jobs[3:19]]
    assert decoders._take(idle)
    assert list(idle) == [jobs[19:35], jobs[35:51]]
    assert list(decoders._jobs) == jobs[51:]


def test_a_large_picture_travels_alone() -> None:
    decoders = Decoders(1)
    small, large = [_Job(b"", Future()) for _ in range(4)], _Job(bytes(1 << 20), Future())
    taken = deque[list[_Job]]()
    decoders._taken.append(taken)
    decoders._jobs.extend([*small[:3], large, small[3]])
    assert decoders._take(taken)
    assert list(taken) == [small[:3], [large]]
    assert list(decoders._jobs) == [small[3]]


def test_of_several_that_travelled_together_only_the_one_at_fault_is_blamed(tmp_path: Path) -> None:
    files = [picture(seed) for seed in range(30)]
    files[7:7], files[20:20] = [b"crash"], [b"hang", b"<svg/>"]
    command = decoding(
        tmp_path,
        "if data == b'crash': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    while data == b'hang': signal.raise_signal(signal.SIGPROF)",
    )
    with Decoders(1, command=command) as decoders:
        futures = [decoders.submit(data) for data in files]
        for data, future in zip(files, futures, strict=True):
            if data in {b"crash", b"hang"}:
                assert code(future) == {b"crash": "image_corrupt", b"hang": "image_decode_limit"}[data]
            else:
                assert same(future.result(LONG), examined(data))


def test_as_many_processes_run_as_are_busy_but_not_more_than_may(tmp_path: Path) -> None:
    with Decoders(2, command=saying(tmp_path, b"")) as decoders:
        for busy in (1, 2, 2):
            decoders.submit(b"never answered")
            deadline = time.monotonic() + LONG
            while len(children()) < busy and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(children()) == busy


def test_a_picture_whose_process_was_killed_from_outside_is_decoded_by_the_next() -> None:
    with Decoders(1) as decoders:
        decoders.submit(picture()).result(LONG)
        (process,) = children()
        process.suspend()
        future = decoders.submit(picture(1))
        process.kill()
        assert future.result(LONG) == examined(picture(1))
        assert process not in children()


# --- the end ---------------------------------------------------------------------------------------------------------


def test_leaving_cancels_what_is_not_done_and_waits_for_nobody(tmp_path: Path) -> None:
    with Decoders(1, command=saying(tmp_path, answer({"digest": SOUND.digest}))) as decoders:
        decoders.submit(b"x").result(LONG)
        futures = [decoders.submit(b"never answered") for _ in range(4)]
    assert all(future.cancelled() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        decoders.submit(b"x")
    decoders.close()


def test_trusted_decoders_end_as_well() -> None:
    with Decoders(0) as decoders:
        decoders.submit(picture()).result(LONG)
    with pytest.raises(RuntimeError):
        decoders.submit(picture())


def test_leaving_does_not_wait_for_a_process_that_is_starting(tmp_path: Path) -> None:
    for _ in range(4):
        with Decoders(1, command=saying(tmp_path, b"", "exec sleep 1000", greeting=b"")) as decoders:
            future = decoders.submit(picture())
        assert future.cancelled()


def test_a_cancelled_picture_spoils_nothing() -> None:
    with Decoders(1) as decoders:
        futures = [decoders.submit(picture(seed)) for seed in range(6)]
        dropped = [future.cancel() for future in futures[1::2]]
        assert all(future.result(LONG) == examined(picture(2 * n)) for n, future in enumerate(futures[::2]))
        assert any(dropped)


def test_a_decoder_ends_when_its_input_does() -> None:
    options = Options(1.0, 1 << 30, 320, 1_000, first_frame=False).to_frame()
    half = struct.pack(">IQ", 1, len(options)) + options + struct.pack(">IQQ", 2, 2, 7) + b"ahhalf"
    for frames in (half, half[: -len(b"ahhalf") - 3]):
        done = subprocess.run(COMMAND, input=frames, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == frame(done.stdout[4:])  # the greeting and no more


def test_decoders_die_with_the_process_they_work_for(tmp_path: Path) -> None:
    command = decoding(tmp_path, "data == b'hang' and time.sleep(1000)")
    script = f"""
import os, psutil, signal
from bpt_core.decoders import Decoders, _Job
decoders = Decoders(1, command={command!r})
decoders.submit(b"").result()
decoders.submit(b"hang")
print(psutil.Process().children()[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    if psutil.pid_exists(pid):
        process = psutil.Process(pid)
        assert process.status() == psutil.STATUS_ZOMBIE or process.wait(LONG) is None


def test_ctrl_c_is_for_the_process_that_decoders_work_for() -> None:
    with Decoders(1) as decoders:
        decoders.submit(picture()).result(LONG)
        (process,) = children()
        process.send_signal(signal.SIGINT)
        decoders.submit(picture()).result(LONG)
        assert children() == [process]


def test_what_a_library_prints_does_not_get_between_the_answers(tmp_path: Path) -> None:
    with Decoders(1, command=decoding(tmp_path, "os.write(1, b'warning')")) as decoders:
        assert decoders.submit(picture()).result(LONG) == examined(picture())


# --- what a decoder is given -----------------------------------------------------------------------------------------


def test_a_decoder_has_nothing_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPT_DATABASE_URL", "a secret")
    with Decoders(1) as decoders:
        decoders.submit(picture()).result(LONG)
        (process,) = children()
        assert "a secret" not in process.environ().values()
        assert process.num_fds() <= 4
        assert process.num_threads() == 1
        limits = [process.rlimit(kind) for kind in (psutil.RLIMIT_AS, psutil.RLIMIT_FSIZE, psutil.RLIMIT_NOFILE)]
        assert limits == [(1 << 30, 1 << 30), (0, 0), (32, 32)]
        # What the kernel can do at all is found out by another confined process.
        script = "from bpt_core.confine import confine; print(*confine(files=False))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert decoders.protections == set(done.stdout.split())


@pytest.mark.parametrize(
    "attempt",
    ["__import__('socket').socket()", "os.execv('/bin/true', ['true'])", "open('/proc/self/environ')"],
)
def test_what_a_decoder_may_not_do_fails_in_it(attempt: str, tmp_path: Path) -> None:
    script = f"""
    try:
        {attempt}
    except PermissionError:
        raise decoder.ImageError("refused", code="image_too_large")"""
    with Decoders(1, command=decoding(tmp_path, script.strip())) as decoders:
        result = decoders.submit(b"x").result(LONG)
        if "open" in attempt and "files" not in decoders.protections:
            pytest.skip("this kernel has no Landlock")
    assert str(result) == "refused"


def test_a_decoder_imports_what_it_needs_and_before_it_is_confined() -> None:
    """Later it could not: no file can be opened any more."""
    script = """
import io, sys
import bpt_core.decoder
from bpt_core import facts, images
from PIL import Image
images.load_decoders()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
exif = Image.Exif()
exif[0x0112], exif[0x010E] = 6, "a description"
for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "MPO"):
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, kind, **({"exif": exif} if kind not in {"BMP", "GIF"} else {}))
    before = set(sys.modules)
    facts.examine([out.getvalue()], short_side=20, pixel_limit=10_000, first_frame=True)
    print(*(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, *later = done.stdout.splitlines()
    assert not {"torch", "pyarrow", "sqlalchemy", "pydantic", "asyncio", "multiprocessing"} & set(first.split())
    assert later == [""] * 8


def test_what_lies_in_the_current_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    with Decoders(1) as decoders:
        assert decoders.submit(picture()).result(LONG) == examined(picture())
