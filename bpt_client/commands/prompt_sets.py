"""`bpt prompt-sets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpt_client.commands.connection import JsonOption, LimitOption, connect
from bpt_client.errors import InputError
from bpt_client.models import Alias
from bpt_client.prompt_sets import ANY
from bpt_client.terminal import first, percent, show_facts, show_json, show_table, size

app = typer.Typer(
    no_args_is_help=True, help="List prompt sets, look at their versions, move their aliases, download artifacts."
)

NameArgument = Annotated[str, typer.Argument(help="The prompt set's name, or name:version.")]
OnlyNameArgument = Annotated[str, typer.Argument(help="The prompt set's name.")]
AliasArgument = Annotated[str, typer.Argument(help="production, staging, any name.")]


@app.command("list")
def list_prompt_sets(context: typer.Context, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List prompt sets."""
    with connect(context) as client:
        found = first(client.prompt_sets.list(), limit)
    if json:
        show_json(found)
    else:
        rows = [(each.name, each.latest_version, _aliases(each.aliases), each.id, each.created_at) for each in found]
        show_table(("name", "version", "aliases", "id", "created"), rows)


@app.command()
def show(context: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Show a prompt set's versions, or one version."""
    name, version = _split(name)
    with connect(context) as client:
        if version is None:
            prompt_set, versions = client.prompt_sets.get(name), list(client.prompt_sets.versions(name))
        else:
            one = client.prompt_sets.version(name, version)
    if version is not None:
        if json:
            show_json(one)
            return
        val, test = one.metrics.val, one.metrics.test
        show_facts(
            [
                ("prompt set", f"{one.prompt_set}:{one.version}"),
                ("backbone", one.backbone),
                ("fingerprint", one.backbone_fingerprint),
                ("method", one.method.type if one.method else None),
                ("parameters", one.parameters or None),
                ("classes", " ".join(one.class_names)),
                ("best epoch", one.metrics.best_epoch),
                ("validation", percent(val.score) if val else None),
                ("test", percent(test.score) if test else None),
                ("artifact", size(one.artifact_bytes)),
                ("sha256", one.artifact_sha256),
                ("job", f"{one.job}, epoch {one.job_epoch}" if one.job_epoch else one.job),
                ("continued from", str(one.continued_from) if one.continued_from else None),
                ("dataset", one.dataset),
                ("created", one.created_at),
            ]
        )
    elif json:
        show_json({"prompt_set": prompt_set, "versions": versions})
    else:
        rows = [
            (
                f"{name}:{each.version}",
                " ".join(alias for alias, at in prompt_set.aliases.items() if at == each.version) or None,
                each.method.type if each.method else None,
                percent(each.metrics.val.score) if each.metrics.val else None,
                percent(each.metrics.test.score) if each.metrics.test else None,
                size(each.artifact_bytes),
                each.created_at,
            )
            for each in versions
        ]
        show_table(("version", "aliases", "method", "validation", "test", "artifact", "created"), rows)


@app.command()
def alias(
    context: typer.Context,
    name: OnlyNameArgument,
    alias: AliasArgument,
    version: Annotated[int, typer.Argument(min=1, help="Where it is to point.")],
    expected_version: Annotated[
        int | None, typer.Option(help="Refuse unless it points there now; 0: unless it does not exist yet.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Point an alias at a version, from the very next prediction on."""
    expected = ANY if expected_version is None else expected_version or None
    with connect(context) as client:
        moved = client.prompt_sets.move_alias(name, alias, version, expected_version=expected)
    _show_alias(moved, json)


@app.command()
def unalias(context: typer.Context, name: OnlyNameArgument, alias: AliasArgument) -> None:
    """Remove an alias; its history stays."""
    with connect(context) as client:
        client.prompt_sets.remove_alias(name, alias)


@app.command()
def rollback(context: typer.Context, name: OnlyNameArgument, alias: AliasArgument, json: JsonOption = False) -> None:
    """Move an alias back to the version before its last move; twice is where it began."""
    with connect(context) as client:
        moved = client.prompt_sets.rollback_alias(name, alias)
    _show_alias(moved, json)


@app.command()
def history(
    context: typer.Context,
    name: OnlyNameArgument,
    alias: AliasArgument,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """Show the moves of an alias, newest first."""
    with connect(context) as client:
        found = first(client.prompt_sets.alias_history(name, alias), limit)
    if json:
        show_json(found)
    else:
        rows = [
            (each.number, each.from_version, each.to_version, each.moved_at, each.actor, each.request_id)
            for each in found
        ]
        show_table(("number", "from", "to", "moved", "by", "request"), rows)


@app.command()
def download(
    context: typer.Context,
    name: NameArgument,
    out: Annotated[Path | None, typer.Option("--out", help="By default NAME-VERSION.safetensors here.")] = None,
) -> None:
    """Download an artifact (safetensors); its SHA-256 is checked."""
    name, version = _split(name)
    with connect(context) as client:
        facts = client.prompt_sets.version(name, version)
        path = out or Path(f"{facts.prompt_set}-{facts.version}.safetensors")
        client.prompt_sets.download(name, path, facts.version)
    show_facts([("file", path), ("sha256", facts.artifact_sha256), ("size", size(facts.artifact_bytes))])


def _show_alias(alias: Alias, json: bool) -> None:
    if json:
        show_json(alias)
    else:
        show_facts(
            [("alias", f"{alias.prompt_set}@{alias.alias}"), ("version", alias.version), ("moved", alias.moved_at)]
        )


def _aliases(aliases: dict[str, int]) -> str | None:
    return " ".join(f"{alias}:{version}" for alias, version in aliases.items()) or None


def _split(name: str) -> tuple[str, int | None]:
    """ "birds:3" -> ("birds", 3), "birds" -> ("birds", None)."""
    name, colon, version = name.partition(":")
    if not colon:
        return name, None
    if not (version.isascii() and version.isdigit()):
        raise InputError(f"{version!r} is no version: they are numbers, as in {name}:1")
    return name, int(version)
