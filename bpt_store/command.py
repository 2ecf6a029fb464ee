"""What the commands for operators share: which service is meant, what is told, and how an error ends them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psycopg
from alembic.util import CommandError
from obstore.exceptions import BaseError
from psycopg.errors import UndefinedTable
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bpt_store.backup_files import BackupError, one_line
from bpt_store.db import CONNECT
from bpt_store.embedded import EmbeddedError, EmbeddedServices
from bpt_store.settings import Settings
from bpt_store.up import environment_of

INCOMPLETE, IMPOSSIBLE = 1, 2
_INTERRUPTED = 130


@contextmanager
def service(data_dir: Path | None) -> Iterator[Settings]:
    """The settings of the service that is meant: that of a directory, or the one of the environment.

    The databases of a directory are started if they do not run, and stopped afterwards. BackupError.
    """
    if data_dir is not None:
        os.environ.update(environment_of(data_dir))
    try:
        settings = Settings()
    except ValidationError as error:
        names = sorted(f"BPT_{'_'.join(map(str, each['loc'])).upper()}" for each in error.errors())
        raise BackupError(f"settings are missing or wrong: {', '.join(names)} (or give --data-dir)") from error
    if settings.owner_database_url is None:
        raise BackupError("BPT_OWNER_DATABASE_URL is needed, too")
    if data_dir is None or _runs(settings):
        yield settings
    else:
        with EmbeddedServices(data_dir):
            yield settings


def connect(url: SecretStr) -> psycopg.Connection[tuple[Any, ...]]:
    """What SQLAlchemy's URL names, through psycopg alone, in autocommit: only it can COPY."""
    plain = make_url(url.get_secret_value()).set(drivername="postgresql")
    return psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True, **CONNECT)


def schema_revision(owner_url: SecretStr) -> str | None:
    """Of the migrations, as only the owner may read it; None where there are no tables."""
    with connect(owner_url) as owner:
        try:
            row = owner.execute("SELECT version_num FROM alembic_version").fetchone()
        except UndefinedTable:
            return None
    return None if row is None else str(row[0])


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def warn(line: str) -> None:
    sys.stderr.write("".join(each if each.isprintable() else " " for each in line) + "\n")
    sys.stderr.flush()


@contextmanager
def bar(doing: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Called with bytes as they pass; drawn on a terminal, and elsewhere not at all."""
    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(doing, total=total_bytes)
        yield lambda count: progress.advance(task, count)


@contextmanager
def ending(program: str) -> Iterator[None]:
    """An error that the operator can do something about is one line, and status 2."""
    try:
        yield
    except (BackupError, EmbeddedError, CommandError) as error:
        _end(program, one_line(error))
    except psycopg.OperationalError as error:
        told = one_line(error)
        away = error.sqlstate is None  # else it has answered
        _end(program, f"the database cannot be reached; is the service running? ({told})" if away else told)
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except DBAPIError as error:
        _end(program, one_line(error.orig or error))
    except (BaseError, OSError, psycopg.Error, SQLAlchemyError) as error:
        _end(program, f"{type(error).__name__}: {one_line(error)}")


def _end(program: str, line: str) -> NoReturn:
    warn(f"{program}: {line}")
    raise SystemExit(IMPOSSIBLE)


def _runs(settings: Settings) -> bool:
    assert settings.superuser_database_url is not None
    try:
        connect(settings.superuser_database_url).close()
    except psycopg.OperationalError:
        return False
    return True
