"""Server-sent events, however the network cuts them up."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bpt_client.sse import Message, messages

STREAM = (
    b': ping\n\nid: 1\nevent: epoch\ndata: {"a":\ndata: 1}\n\n'
    b"id:2\r\ndata:no space\r\n\r\nevent: state\rid: 3\rdata: \xe2\x80\xa8 stays\r\rretry: 10\nunknown\n\n"
)
EXPECTED = [
    Message('{"a":\n1}', "epoch", "1"),
    Message("no space", "message", "2"),
    Message("\N{LINE SEPARATOR} stays", "state", "3"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_messages_do_not_depend_on_how_the_stream_is_cut_into_chunks(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(ends)]
    assert list(messages(chunks)) == EXPECTED


def test_a_message_that_was_cut_off_is_dropped() -> None:
    assert list(messages([b"data: whole\n\ndata: half\n"])) == [Message("whole")]


def test_a_message_comes_as_soon_as_its_blank_line_does() -> None:
    def chunks() -> object:
        yield b"data: first\n\n"
        raise AssertionError("asked for more than was needed")

    assert next(messages(chunks())) == Message("first")  # type: ignore[arg-type]  # an iterator is all it needs
