"""`bpt customers` and `bpt keys`: for administrators."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Annotated

import typer

from bpt_client.commands.connection import JsonOption, LimitOption, connect
from bpt_client.errors import InputError
from bpt_client.models import ApiKey, Customer
from bpt_client.terminal import first, show_facts, show_json, show_table

customers = typer.Typer(no_args_is_help=True, help="Customers (administrator's key).")
keys = typer.Typer(no_args_is_help=True, help="API keys of customers and administrators (administrator's key).")

CustomerArgument = Annotated[str, typer.Argument(help="The customer's id (cus_...).")]
AdminOption = Annotated[bool, typer.Option("--admin", help="Of administrators, and not of a customer.")]
CustomerOption = Annotated[str | None, typer.Option(help="The customer's id (cus_...).")]
KeyArgument = Annotated[str, typer.Argument(help="The key's id (key_...).")]


@customers.command("create")
def create_customer(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name no other customer has.")],
    json: JsonOption = False,
) -> None:
    """Create a customer."""
    with connect(context) as client:
        customer = client.customers.create(name)
    _show(customer, json)


@customers.command("list")
def list_customers(context: typer.Context, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List customers."""
    with connect(context) as client:
        found = first(client.customers.list(), limit)
    if json:
        show_json(found)
    else:
        rows = [(each.id, each.name, each.created_at, each.suspended_at) for each in found]
        show_table(("id", "name", "created", "suspended"), rows)


@customers.command("show")
def show_customer(context: typer.Context, customer: CustomerArgument, json: JsonOption = False) -> None:
    """Show a customer with his limits; one that is not shown is the service's own."""
    with connect(context) as client:
        found = client.customers.get(customer)
    _show(found, json)


@customers.command("change")
def change_customer(
    context: typer.Context,
    customer: CustomerArgument,
    name: Annotated[str | None, typer.Option(help="A new name, that no other customer has.")] = None,
    weight: Annotated[str | None, typer.Option(help="3 is three times the share of one with 1.")] = None,
    running_jobs_limit: Annotated[str | None, typer.Option(help="Of one kind at a time.")] = None,
    queued_jobs_limit: Annotated[str | None, typer.Option(help="Unfinished jobs of one kind.")] = None,
    quota_datasets: Annotated[str | None, typer.Option(help="Datasets.")] = None,
    quota_images: Annotated[str | None, typer.Option(help="Images, in the newest versions.")] = None,
    quota_bytes: Annotated[str | None, typer.Option(help="Stored bytes.")] = None,
    requests_per_minute: Annotated[str | None, typer.Option(help="Requests; 0 is no limit.")] = None,
    images_per_minute: Annotated[str | None, typer.Option(help="Images predicted online; 0 is no limit.")] = None,
    upload_bytes_per_day: Annotated[str | None, typer.Option(help="Bytes sent in; 0 is no limit.")] = None,
    json: JsonOption = False,
) -> None:
    """Rename a customer, or change limits: a number, or `default` for the service's own."""
    limits = {
        "weight": weight,
        "running_jobs_limit": running_jobs_limit,
        "queued_jobs_limit": queued_jobs_limit,
        "quota_datasets": quota_datasets,
        "quota_images": quota_images,
        "quota_bytes": quota_bytes,
        "requests_per_minute": requests_per_minute,
        "images_per_minute": images_per_minute,
        "upload_bytes_per_day": upload_bytes_per_day,
    }
    changes: dict[str, str | float | None] = {
        limit: _number(limit, value) for limit, value in limits.items() if value is not None
    }
    if name is not None:
        changes["name"] = name
    if not changes:
        raise InputError("nothing to change; see `bpt customers change --help`")
    with connect(context) as client:
        changed = client.customers.change(customer, **changes)
    _show(changed, json)


@customers.command("suspend")
def suspend_customer(context: typer.Context, customer: CustomerArgument, json: JsonOption = False) -> None:
    """Refuse a customer's keys at once and let queued jobs wait; running ones come to their end."""
    with connect(context) as client:
        suspended = client.customers.suspend(customer)
    _show(suspended, json)


@customers.command("resume")
def resume_customer(context: typer.Context, customer: CustomerArgument, json: JsonOption = False) -> None:
    """End a suspension."""
    with connect(context) as client:
        resumed = client.customers.resume(customer)
    _show(resumed, json)


@customers.command("delete")
def delete_customer(
    context: typer.Context,
    customer: CustomerArgument,
    name: Annotated[str, typer.Option(help="The customer's name, to confirm that this one is meant.")],
) -> None:
    """Delete a customer with datasets, jobs, prompt sets and keys, for good."""
    with connect(context) as client:
        client.customers.delete(customer, name)


def _number(limit: str, text: str) -> float | None:
    if text == "default":
        return None
    try:
        return float(text) if limit == "weight" else int(text)
    except ValueError:
        raise InputError(f"--{limit.replace('_', '-')}: a number or `default`, not {text!r}") from None


def _show(customer: Customer, json: bool) -> None:
    if json:
        show_json(customer)
    else:
        show_facts([(each.name.replace("_", " "), getattr(customer, each.name)) for each in fields(customer)])


@keys.command("create")
def create_key(
    context: typer.Context,
    customer: CustomerOption = None,
    admin: AdminOption = False,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "bpt",
    scope: Annotated[list[str] | None, typer.Option(help="May be repeated; without it all of a customer's.")] = None,
    expires_at: Annotated[datetime | None, typer.Option(help="Local time at which the key ends.")] = None,
    json: JsonOption = False,
) -> None:
    """Create a key. Its token is shown here and never again."""
    ends = None if expires_at is None else expires_at.astimezone()
    whose = _whose(customer, admin)
    if whose is None and scope:
        raise InputError("an administrator's key has the scope admin and no other")
    with connect(context) as client:
        if whose is None:
            key = client.admin_keys.create(name, expires_at=ends)
        else:
            key = client.api_keys.create(whose, name, scopes=scope, expires_at=ends)
    _show_new(key, json)


@keys.command()
def rotate(
    context: typer.Context,
    key: KeyArgument,
    overlap_hours: Annotated[float, typer.Option(min=0, max=720, help="So long the old key holds, too.")] = 24,
    admin: AdminOption = False,
    json: JsonOption = False,
) -> None:
    """Make a new key in place of one. Its token is shown here and never again."""
    with connect(context) as client:
        kind = client.admin_keys if admin else client.api_keys
        made = kind.rotate(key, overlap_seconds=round(3600 * overlap_hours))
    _show_new(made, json)


@keys.command("list")
def list_keys(
    context: typer.Context,
    customer: CustomerOption = None,
    admin: AdminOption = False,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List keys, without their tokens."""
    whose = _whose(customer, admin)
    with connect(context) as client:
        found = first(client.admin_keys.list() if whose is None else client.api_keys.list(whose), limit)
    if json:
        show_json(found)
        return
    rows = [
        (key.id, key.customer, key.name, " ".join(key.scopes), key.last_used_at, key.expires_at, key.revoked_at)
        for key in found
    ]
    show_table(("id", "customer", "name", "scopes", "last used", "expires", "revoked"), rows)


@keys.command()
def revoke(context: typer.Context, key: KeyArgument, admin: AdminOption = False) -> None:
    """Make a key worthless, at once and for good."""
    with connect(context) as client:
        revoked = (client.admin_keys if admin else client.api_keys).revoke(key)
    show_facts([("id", revoked.id), ("revoked", revoked.revoked_at)])


def _whose(customer: str | None, admin: bool) -> str | None:
    """The customer, or None for administrators; InputError unless one of them is meant."""
    if admin == (customer is not None):
        raise InputError("say whose: --customer cus_... or --admin")
    return customer


def _show_new(key: ApiKey, json: bool) -> None:
    if json:
        show_json(key)
    else:
        show_facts([("id", key.id), ("customer", key.customer), ("scopes", " ".join(key.scopes)), ("token", key.token)])
