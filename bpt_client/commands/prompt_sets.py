"""`bpt prompt-sets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpt_client.commands import jobs
from bpt_client.commands.connection import JsonOption, LimitOption, connect, dataset_reference
from bpt_client.errors import InputError
from bpt_client.models import Alias, GateCheck, PromptSet, PromptSetVersion
from bpt_client.prompt_sets import ANY
from bpt_client.terminal import errors, first, percent, show_facts, show_json, show_table, size
from bpt_client.watch import JobWatch

app = typer.Typer(
    no_args_is_help=True, help="Look at prompt sets and their versions, label, archive and delete them, move aliases."
)

NameArgument = Annotated[str, typer.Argument(help="The prompt set's name, or name:version.")]
OnlyNameArgument = Annotated[str, typer.Argument(help="The prompt set's name.")]
AliasArgument = Annotated[str, typer.Argument(help="production, staging, any name.")]
VersionArgument = Annotated[str, typer.Argument(help="A version, as in birds:3.")]
DescriptionOption = Annotated[str | None, typer.Option(help="Up to 2,000 characters; empty removes it.")]
MetadataOption = Annotated[
    list[str] | None, typer.Option(help="key=value, once or more; all that was there is replaced.")
]


@app.command()
def create(
    context: typer.Context,
    name: OnlyNameArgument,
    description: DescriptionOption = None,
    metadata: MetadataOption = None,
) -> None:
    """Make an empty prompt set; `bpt tune` makes the one it names by itself."""
    with connect(context) as client:
        made = client.prompt_sets.create(name, description=description, metadata=_pairs(metadata))
    show_facts([("prompt set", made.name), ("id", made.id), ("description", made.description)])


@app.command("list")
def list_prompt_sets(
    context: typer.Context,
    metadata: Annotated[list[str] | None, typer.Option(help="Only those with this key=value.")] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List prompt sets."""
    with connect(context) as client:
        found = first(client.prompt_sets.list(metadata=_pairs(metadata)), limit)
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
                ("imported", "yes" if one.imported else None),
                ("job", f"{one.job}, epoch {one.job_epoch}" if one.job_epoch else one.job),
                ("continued from", str(one.continued_from) if one.continued_from else None),
                ("dataset", f"{one.dataset}:{one.dataset_version}" if one.dataset_version else one.dataset),
                ("seed", one.seed),
                ("code", one.code_version),
                ("description", one.description),
                *one.metadata.items(),
                ("created", one.created_at),
                ("archived", one.archived_at),
                ("in quarantine", one.quarantined_at),
                ("because", one.quarantine_reason),
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
                each.archived_at,
            )
            for each in versions
        ]
        show_table(("version", "aliases", "method", "validation", "test", "artifact", "created", "archived"), rows)


@app.command()
def describe(
    context: typer.Context, name: NameArgument, description: DescriptionOption = None, metadata: MetadataOption = None
) -> None:
    """Label a prompt set, or a version of one, as in birds:3."""
    pairs = _pairs(metadata)
    name, version = _split(name)
    labelled: PromptSet | PromptSetVersion
    with connect(context) as client:
        if version is None:
            labelled = client.prompt_sets.describe(name, description=description, metadata=pairs)
        else:
            labelled = client.prompt_sets.describe_version(name, version, description=description, metadata=pairs)
    show_facts([("description", labelled.description), *labelled.metadata.items()])


@app.command()
def archive(context: typer.Context, version: VersionArgument) -> None:
    """Archive a version: no name means it and no alias moves to it; its number still does."""
    name, number = _version(version)
    with connect(context) as client:
        found = client.prompt_sets.archive(name, number)
    show_facts([("version", f"{found.prompt_set}:{found.version}"), ("archived", found.archived_at)])


@app.command()
def unarchive(context: typer.Context, version: VersionArgument) -> None:
    """Take a version out of the archive."""
    name, number = _version(version)
    with connect(context) as client:
        client.prompt_sets.unarchive(name, number)


@app.command()
def delete(context: typer.Context, name: NameArgument) -> None:
    """Delete an archived version, or a prompt set without aliases and all its versions."""
    name, version = _split(name)
    with connect(context) as client:
        client.prompt_sets.delete(name, version)


@app.command()
def alias(
    context: typer.Context,
    name: OnlyNameArgument,
    alias: AliasArgument,
    version: Annotated[int, typer.Argument(min=1, help="Where it is to point.")],
    expected_version: Annotated[
        int | None, typer.Option(help="Refuse unless it points there now; 0: unless it does not exist yet.")
    ] = None,
    override_reason: Annotated[
        str | None, typer.Option(help="Move it although the gate is against it; the history keeps the reason.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Point an alias at a version, from the very next prediction on."""
    expected = ANY if expected_version is None else expected_version or None
    with connect(context) as client:
        moved = client.prompt_sets.move_alias(
            name, alias, version, expected_version=expected, override_reason=override_reason
        )
    _show_alias(moved, json)


@app.command()
def unalias(context: typer.Context, name: OnlyNameArgument, alias: AliasArgument) -> None:
    """Remove an alias; its history stays."""
    with connect(context) as client:
        client.prompt_sets.remove_alias(name, alias)


@app.command()
def rollback(
    context: typer.Context,
    name: OnlyNameArgument,
    alias: AliasArgument,
    to_version: Annotated[
        int | None, typer.Option(min=1, help="Where it has been; by default before its last move.")
    ] = None,
    expected_version: Annotated[int | None, typer.Option(min=1, help="Refuse unless it points there now.")] = None,
    json: JsonOption = False,
) -> None:
    """Move an alias back to where it has been, without asking the gate; twice is where it began."""
    with connect(context) as client:
        moved = client.prompt_sets.rollback_alias(name, alias, to_version=to_version, expected_version=expected_version)
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
            (
                each.number,
                each.from_version,
                each.to_version,
                each.moved_at,
                each.actor,
                each.request_id,
                each.override_reason,
            )
            for each in found
        ]
        show_table(("number", "from", "to", "moved", "by", "request", "gate overridden"), rows)


@app.command()
def gate(
    context: typer.Context,
    name: OnlyNameArgument,
    dataset: Annotated[
        str | None, typer.Option(help="Golden images: id or name of a labelled dataset; `:3` behind it: version 3.")
    ] = None,
    floor: Annotated[float | None, typer.Option(min=0, max=1, help="What a version must reach, as 0.9.")] = None,
    metric: Annotated[str, typer.Option(help="top1, balanced_top1, f1_macro, ...")] = "top1",
    split: Annotated[str | None, typer.Option(help="train, val or test; by default all images.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Guard this one, once or more; by default all.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Let every version pass.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a version must reach before an alias moves to it; set it with --dataset and --floor."""
    if (dataset is None) != (floor is None) or (remove and dataset is not None):
        raise InputError("a gate is set with --dataset and --floor, and removed with --remove alone")
    with connect(context) as client:
        if remove:
            client.prompt_sets.remove_gate(name)
            return
        if dataset is None or floor is None:
            found = client.prompt_sets.gate(name)
        else:
            reference = dataset_reference(client, dataset)
            found = client.prompt_sets.set_gate(name, reference, floor=floor, metric=metric, split=split, aliases=alias)
    if json:
        show_json(found)
        return
    show_facts(
        [
            ("prompt set", found.prompt_set),
            ("aliases", " ".join(found.aliases) if found.aliases else "all"),
            ("images", f"{found.dataset}:{found.dataset_version}" + (f", split {found.split}" if found.split else "")),
            ("asks for", f"{found.metric} {found.floor:g} or more"),
            ("set", found.set_at),
        ]
    )


@app.command()
def check(context: typer.Context, version: VersionArgument, json: JsonOption = False) -> None:
    """Have a version predict the gate's images; exit code 1 unless it passes."""
    name, number = _version(version)
    with connect(context) as client:
        job = client.prompt_sets.check(name, number)
        with JobWatch(errors(), version, doing="checking") as watch:
            watch.show_all(client.batch_predictions.follow(job.id))
        client.batch_predictions.wait(job.id)
        found = [each for each in client.prompt_sets.checks(name, number) if each.job == job.id]
    _show_checks(found, json)
    if not any(each.passed for each in found):
        raise typer.Exit(1)


@app.command()
def checks(
    context: typer.Context, version: VersionArgument, limit: LimitOption = 100, json: JsonOption = False
) -> None:
    """Show how a version did on labelled datasets, newest first."""
    name, number = _version(version)
    with connect(context) as client:
        found = first(client.prompt_sets.checks(name, number), limit)
    _show_checks(found, json)


@app.command()
def reproduce(
    context: typer.Context,
    version: VersionArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until the job ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Learn a version once more and tell the difference; nothing is published.

    With --wait, exit code 1 where something different came out.
    """
    name, number = _version(version)
    with connect(context) as client:
        job = client.prompt_sets.reproduce(name, number)
        if wait:
            job = jobs.follow_job(client, job)
    jobs.show_job(job, json)
    if job.reproduction is not None and job.reproduction.verdict == "different":
        raise typer.Exit(1)


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


@app.command("import")
def import_version(
    context: typer.Context,
    name: OnlyNameArgument,
    file: Annotated[Path, typer.Argument(help="An artifact, as `bpt prompt-sets download` wrote it.")],
    json: JsonOption = False,
) -> None:
    """Make an artifact the next version; the prompt set is made if it is not there."""
    with connect(context) as client:
        made = client.prompt_sets.import_version(name, file)
    if json:
        show_json(made)
    else:
        show_facts([("version", f"{made.prompt_set}:{made.version}"), ("sha256", made.artifact_sha256)])


@app.command()
def restore(
    context: typer.Context,
    version: VersionArgument,
    file: Annotated[Path, typer.Argument(help="The artifact of that version, as it was downloaded.")],
) -> None:
    """Put a version's artifact back where the stored one is damaged: the same bytes. It leaves quarantine."""
    name, number = _version(version)
    with connect(context) as client:
        found = client.prompt_sets.restore_version(name, number, file)
    show_facts([("version", f"{found.prompt_set}:{found.version}"), ("sha256", found.artifact_sha256)])


@app.command()
def release(context: typer.Context, version: VersionArgument) -> None:
    """Let a version out of quarantine whose stored artifact has been repaired."""
    name, number = _version(version)
    with connect(context) as client:
        found = client.prompt_sets.release_version(name, number)
    show_facts([("version", f"{found.prompt_set}:{found.version}"), ("sha256", found.artifact_sha256)])


def _show_alias(alias: Alias, json: bool) -> None:
    if json:
        show_json(alias)
    else:
        show_facts(
            [("alias", f"{alias.prompt_set}@{alias.alias}"), ("version", alias.version), ("moved", alias.moved_at)]
        )


def _show_checks(found: list[GateCheck], json: bool) -> None:
    if json:
        show_json(found)
        return
    rows = [
        (
            f"{each.prompt_set}:{each.version}",
            f"{each.dataset}:{each.dataset_version}",
            each.split,
            {True: "yes", False: "no", None: None}[each.passed],
            " ".join(f"{metric}={value:.4g}" for metric, value in each.metrics.items() if value is not None),
            each.job,
            each.created_at,
        )
        for each in found
    ]
    show_table(("version", "dataset", "split", "passed", "metrics", "job", "checked"), rows)


def _aliases(aliases: dict[str, int]) -> str | None:
    return " ".join(f"{alias}:{version}" for alias, version in aliases.items()) or None


def _pairs(given: list[str] | None) -> dict[str, str] | None:
    """["team=birds"] -> {"team": "birds"}"""
    if given is None:
        return None
    if wrong := [each for each in given if "=" not in each]:
        raise InputError(f"{wrong[0]!r} is no metadata: they are given as key=value")
    return dict(each.split("=", 1) for each in given)


def _version(reference: str) -> tuple[str, int]:
    name, version = _split(reference)
    if version is None:
        raise InputError(f"a version is wanted, as in {name}:3")
    return name, version


def _split(name: str) -> tuple[str, int | None]:
    """ "birds:3" -> ("birds", 3), "birds" -> ("birds", None)."""
    name, colon, version = name.partition(":")
    if not colon:
        return name, None
    if not (version.isascii() and version.isdigit()):
        raise InputError(f"{version!r} is no version: they are numbers, as in {name}:1")
    return name, int(version)
