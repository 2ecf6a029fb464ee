"""The socket that `bpt up` hands to the API."""

from __future__ import annotations

import socket
from pathlib import Path

from bpt_store.up import Up


def test_connections_send_small_replies_at_once(tmp_path: Path) -> None:
    up = Up(tmp_path, "127.0.0.1", 0)
    with up._listener, socket.create_connection(up._listener.getsockname()), up._listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
