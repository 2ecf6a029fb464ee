"""`bpt customers` and `bpt keys`: for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from bpt_client.commands.connection import JsonOption, LimitOption, connect
from bpt_client.terminal import first, show_facts, show_json, show_table

customers = typer.Typer(no_args_is_help=True, help="Customers (administrator's key).")
keys = typer.Typer(no_args_is_help=True, help="API keys of customers (administrator's key).")


@customers.command("create")
def create_customer(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name no other customer has.")],
    json: JsonOption = False,
) -> None:
    """Create a customer."""
    with connect(context) as client:
        customer = client.customers.create(name)
    if json:
        show_json(customer)
    else:
        show_facts([("id", customer.id), ("name", customer.name)])


@customers.command("list")
def list_customers(context: typer.Context, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List customers."""
    with connect(context) as client:
        found = first(client.customers.list(), limit)
    if json:
        show_json(found)
    else:
        show_table(("id", "name", "created"), [(each.id, each.name, each.created_at) for each in found])


@keys.command("create")
def create_key(
    context: typer.Context,
    customer: Annotated[str, typer.Option(help="The customer's id (cus_...).")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "bpt",
    scope: Annotated[list[str] | None, typer.Option(help="May be repeated; without it all of a customer's.")] = None,
    expires_at: Annotated[datetime | None, typer.Option(help="Local time at which the key ends.")] = None,
    json: JsonOption = False,
) -> None:
    """Create a key. Its token is shown here and never again."""
    ends = None if expires_at is None else expires_at.astimezone()
    with connect(context) as client:
        key = client.api_keys.create(customer, name, scopes=scope, expires_at=ends)
    if json:
        show_json(key)
    else:
        show_facts([("id", key.id), ("customer", key.customer), ("scopes", " ".join(key.scopes)), ("token", key.token)])


@keys.command("list")
def list_keys(
    context: typer.Context,
    customer: Annotated[str, typer.Option(help="The customer's id (cus_...).")],
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List keys, without their tokens."""
    with connect(context) as client:
        found = first(client.api_keys.list(customer), limit)
    if json:
        show_json(found)
        return
    rows = [(key.id, key.customer, key.name, " ".join(key.scopes), key.expires_at, key.revoked_at) for key in found]
    show_table(("id", "customer", "name", "scopes", "expires", "revoked"), rows)


@keys.command()
def revoke(context: typer.Context, key: Annotated[str, typer.Argument(help="The key's id (key_...).")]) -> None:
    """Make a key worthless, at once and for good."""
    with connect(context) as client:
        revoked = client.api_keys.revoke(key)
    show_facts([("id", revoked.id), ("revoked", revoked.revoked_at)])
