"""`python -m bpt_store.admin bootstrap`: the first administrator's key, printed once.

With --data-dir it speaks to the running single-machine service of that directory, otherwise to the database that
the environment names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import OperationalError

from bpt_store import administrators
from bpt_store.db import Database
from bpt_store.settings import Settings
from bpt_store.up import environment_of

EXISTS_ALREADY = 3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bpt admin", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["bootstrap"])
    parser.add_argument("--data-dir", type=Path, help="of a running `bpt up`")
    options = parser.parse_args(arguments)
    if options.data_dir is not None:
        if not options.data_dir.is_dir():
            raise SystemExit(f"bpt admin: there is no directory {options.data_dir}")
        os.environ.update(environment_of(options.data_dir))
    database = Database(Settings())
    try:
        with database.system() as session:
            token = administrators.bootstrap(session)
    except OperationalError as error:
        raise SystemExit(
            f"bpt admin: the database cannot be reached; is the service running? ({error.orig})"
        ) from error
    if token is None:
        sys.stderr.write("bpt admin: there is an administrator's key already; it was shown once, when it was made\n")
        raise SystemExit(EXISTS_ALREADY)
    sys.stdout.write(token + "\n")


if __name__ == "__main__":
    main()
