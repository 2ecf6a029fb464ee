"""`bpt webhooks`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from bpt_client.commands.connection import JsonOption, LimitOption, connect
from bpt_client.errors import InputError
from bpt_client.terminal import first, show_facts, show_json, show_table
from bpt_client.webhook_models import WebhookDelivery, WebhookEndpoint

app = typer.Typer(no_args_is_help=True, help="Have your own server told of what happens, and see what it was sent.")

EndpointArgument = Annotated[str, typer.Argument(help="The endpoint's id (whk_...).")]


@app.command()
def create(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="https://..., to which events are sent.")],
    event: Annotated[list[str] | None, typer.Option(help="May be repeated; without it the endpoint gets all.")] = None,
    description: Annotated[str, typer.Option(help="For you.")] = "",
    json: JsonOption = False,
) -> None:
    """Have a URL told of what happens. Its secret is shown here and never again."""
    with connect(context) as client:
        _show_endpoint(client.webhooks.create(url, events=event or (), description=description), json)


@app.command("list")
def list_endpoints(context: typer.Context, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List endpoints, without their secrets."""
    with connect(context) as client:
        found = first(client.webhooks.list(), limit)
    if json:
        show_json(found)
        return
    rows = [
        (each.id, each.url, " ".join(each.events) or "all", each.failing_since, each.disabled_reason) for each in found
    ]
    show_table(("id", "url", "events", "failing since", "disabled"), rows)


@app.command("rotate-secret")
def rotate_secret(
    context: typer.Context,
    endpoint: EndpointArgument,
    old_secret_hours: Annotated[float, typer.Option(min=0, help="So long the old one holds as well.")] = 24,
    json: JsonOption = False,
) -> None:
    """Give an endpoint a new secret. It is shown here and never again."""
    with connect(context) as client:
        _show_endpoint(client.webhooks.rotate_secret(endpoint, old_secret_hours=old_secret_hours), json)


@app.command()
def enable(context: typer.Context, endpoint: EndpointArgument, json: JsonOption = False) -> None:
    """Enable an endpoint that was disabled; what waited is sent."""
    with connect(context) as client:
        _show_endpoint(client.webhooks.enable(endpoint), json)


@app.command("test")
def send_test(context: typer.Context, endpoint: EndpointArgument, json: JsonOption = False) -> None:
    """Send an endpoint an event of the type webhook.test."""
    with connect(context) as client:
        _show_delivery(client.webhooks.test(endpoint), json)


@app.command()
def deliveries(
    context: typer.Context,
    endpoint: EndpointArgument,
    state: Annotated[str | None, typer.Option(help="pending, delivered or dead.")] = None,
    event: Annotated[str | None, typer.Option(help="Only events of this type.")] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List what an endpoint was sent, newest first."""
    with connect(context) as client:
        found = first(client.webhooks.deliveries(endpoint, state=state, type=event), limit)
    if json:
        show_json(found)
        return
    rows = [
        (each.id, each.type, each.state, each.attempts, each.last_status, each.last_error, each.next_at)
        for each in found
    ]
    show_table(("id", "event", "state", "attempts", "status", "error", "next"), rows)


@app.command()
def replay(
    context: typer.Context,
    endpoint: EndpointArgument,
    delivery: Annotated[str | None, typer.Argument(help="The delivery's id (dlv_...).")] = None,
    dead_since: Annotated[
        datetime | None, typer.Option(help="Instead of one: all that are dead and not older (local time).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Send a delivery once more, or all that are dead."""
    if (delivery is None) == (dead_since is None):
        raise InputError("give either a delivery or --dead-since")
    with connect(context) as client:
        if delivery is not None:
            _show_delivery(client.webhooks.replay(endpoint, delivery), json)
        else:
            assert dead_since is not None
            count = client.webhooks.replay_dead(endpoint, dead_since)
            if json:
                show_json({"deliveries": count})
            else:
                show_facts([("deliveries", count)])


@app.command()
def delete(context: typer.Context, endpoint: EndpointArgument) -> None:
    """Delete an endpoint with its deliveries."""
    with connect(context) as client:
        client.webhooks.delete(endpoint)


def _show_endpoint(endpoint: WebhookEndpoint, json: bool) -> None:
    if json:
        show_json(endpoint)
    else:
        events = " ".join(endpoint.events) or "all"
        show_facts([("id", endpoint.id), ("url", endpoint.url), ("events", events), ("secret", endpoint.secret)])


def _show_delivery(delivery: WebhookDelivery, json: bool) -> None:
    if json:
        show_json(delivery)
    else:
        show_facts([("id", delivery.id), ("event", delivery.type), ("state", delivery.state)])
