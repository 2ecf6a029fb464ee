"""From the command line's global options to a client, and from names people type to ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from bpt_client.client import Client
from bpt_client.errors import InputError
from bpt_client.models import Dataset

JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table, for scripts.")]
LimitOption = Annotated[int, typer.Option(min=1, help="Show at most so many.")]


@dataclass(frozen=True)
class Connection:
    url: str
    api_key: str


def connect(context: typer.Context) -> Client:
    """InputError without a key."""
    connection: Connection = context.obj
    if not connection.api_key:
        raise InputError("no API key: set BPT_API_KEY, or give --api-key before the command")
    return Client(connection.url, connection.api_key)


def find_dataset(client: Client, wanted: str) -> Dataset:
    """By id, or the newest that is ready of that name. InputError where there is none."""
    if wanted.startswith("ds_"):
        return client.datasets.get(wanted)
    named = [each for each in client.datasets.list() if each.name == wanted and each.is_ready]
    if not named:
        raise InputError(f"no dataset named {wanted!r} is ready; see `bpt datasets list`")
    return max(named, key=lambda each: each.created_at)


def dataset_reference(client: Client, wanted: str) -> str:
    """What a job is to be given: the id, with `:3` behind it where that version is wanted."""
    name, colon, version = wanted.rpartition(":")
    if not colon or not version.isdigit():
        return find_dataset(client, wanted).id
    return f"{find_dataset(client, name).id}:{version}"
