"""The `bpt` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bpt_client.commands import (
    audit_log,
    batch_predictions,
    customers,
    datasets,
    jobs,
    predictions,
    prompt_sets,
    server,
    usage,
    webhooks,
)
from bpt_client.commands.connection import Connection
from bpt_client.errors import BptError
from bpt_client.terminal import fail

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Bilinear prompt tuning as a service: run it, and use it.",
)
app.command()(server.up)
app.command()(server.backup)
app.command()(server.restore)
app.add_typer(server.admin, name="admin")
app.add_typer(customers.customers, name="customers")
app.add_typer(customers.keys, name="keys")
app.command()(audit_log.audit_log)
app.command()(usage.usage)
app.add_typer(datasets.app, name="datasets")
app.command()(jobs.tune)
app.add_typer(jobs.app, name="jobs")
app.command()(predictions.predict)
app.add_typer(prompt_sets.app, name="prompt-sets")
app.command()(batch_predictions.predict_batch)
app.add_typer(batch_predictions.app, name="batch-predictions")
app.add_typer(webhooks.app, name="webhooks")


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="BPT_URL", help="Where the service is.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str, typer.Option(envvar="BPT_API_KEY", help="Better in the environment: other users see arguments.")
    ] = "",
) -> None:
    context.obj = Connection(url, api_key)


@app.command()
def demo(
    data_dir: Annotated[Path, typer.Option(help="Made at the first run, used again by later ones.")] = Path(".demo"),
    leave: Annotated[
        bool, typer.Option("--exit", help="End the service afterwards, as DEMO_EXIT=1 does, instead of at Ctrl-C.")
    ] = False,
) -> None:
    """Show the whole service: dataset, tuning, prediction, all on this machine."""
    server.require_server()
    # Here, for nobody else needs what it imports.
    from bpt_client.demo import Demo

    raise typer.Exit(Demo(data_dir, leave=leave or os.environ.get("DEMO_EXIT") == "1").run())


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 0, 1 after an error (one red line), 2 for a wrong command line, 130 after Ctrl-C."""
    try:
        app(args=arguments, prog_name="bpt")
    except BptError as error:
        fail(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
