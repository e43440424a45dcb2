"""`raftq enqueue`, `lease`, `ack` and `nack`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import msgspec

from raftq.cli.connection import ask, connection_options, say_json
from raftq.client.client import FRESH
from raftq.client.models import LeasedMessage, NewMessage, Settled
from raftq.node.exits import Exit, Fatal


@click.command()
@click.argument("queue")
@click.argument("body", nargs=-1, required=True)
@click.option("--body-json", is_flag=True, help="Take each BODY as JSON, not as text.")
@click.option("--attribute", "-a", "attributes", multiple=True, metavar="KEY=VALUE", help="Of each message, as text.")
@click.option("--priority", type=click.IntRange(0, 9), default=0, help="9 is delivered first.  [0]")
@click.option("--delay", type=click.FloatRange(0), metavar="SECONDS", help="Ready only after so long.")
@click.option("--dedup-id", help="Enqueue once: the same id again, within the queue's window, adds nothing.")
@click.option("--request-id", help="Make this command safe to repeat: the same id again enqueues nothing.")
@connection_options
def enqueue(
    queue: str,
    body: tuple[str, ...],
    body_json: bool,
    attributes: tuple[str, ...],
    priority: int,
    delay: float | None,
    dedup_id: str | None,
    request_id: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Put messages into a queue.

    All of them or none, in their order. Prints their ids.
    """
    if dedup_id is not None and len(body) > 1:
        raise click.UsageError("--dedup-id is of one message: give one BODY")
    made = [
        NewMessage(
            body=_json(text) if body_json else text,
            attributes=dict(map(_attribute, attributes)),
            priority=priority,
            delay_seconds=delay,
            dedup_id=dedup_id,
        )
        for text in body
    ]
    enqueued = ask(url, lambda client: client.enqueue(queue, made, request_id=request_id or FRESH))
    if as_json:
        say_json(enqueued)
        return
    for message in enqueued.messages:
        click.echo(f"{message.id}  duplicate" if message.duplicate else message.id)


@click.command()
@click.argument("queue")
@click.option("--max", "most", type=click.IntRange(1, 1000), default=1, help="At most so many messages.  [1]")
@click.option("--lease", type=click.FloatRange(0.001), metavar="SECONDS", help="For so long.  [default: the queue's]")
@click.option("--wait", type=click.FloatRange(0, 60), default=0, metavar="SECONDS", help="For the first message.  [0]")
@connection_options
def lease(queue: str, most: int, lease: float | None, wait: float, url: str | None, as_json: bool) -> None:
    """Lease messages from a queue.

    Prints the receipt and the body of each; give the receipt to `raftq ack` when the message is done.
    """
    leased = ask(url, lambda client: client.lease(queue, max=most, lease_seconds=lease, wait_seconds=wait))
    if as_json:
        say_json({"messages": [_as_json(message) for message in leased]})
    else:
        for message in leased:
            click.echo(f"{message.receipt}  {_shown(message.body)}")
    if not leased:
        raise Fatal(Exit.NOT_ALL, f"nothing is ready in {queue}: try --wait 10")


@click.command()
@click.argument("queue")
@click.argument("receipt", nargs=-1, required=True)
@connection_options
def ack(queue: str, receipt: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Ack leased messages: they are done."""
    _say_results(ask(url, lambda client: client.ack(queue, receipt)), as_json)


@click.command()
@click.argument("queue")
@click.argument("receipt", nargs=-1, required=True)
@click.option("--delay", type=click.FloatRange(0), metavar="SECONDS", help="Ready again only after so long.")
@connection_options
def nack(queue: str, receipt: tuple[str, ...], delay: float | None, url: str | None, as_json: bool) -> None:
    """Hand leased messages back, counting a failure."""
    _say_results(ask(url, lambda client: client.nack(queue, receipt, delay_seconds=delay)), as_json)


def _say_results(results: Sequence[Settled], as_json: bool) -> None:
    if as_json:
        say_json({"results": results})
    else:
        for result in results:
            click.echo(f"{result.receipt}  {result.status}")
    gone = sum(result.status != "done" for result in results)
    if gone:
        raise Fatal(Exit.NOT_ALL, f"{gone} of {len(results)} were gone: the lease has passed, or it was settled before")


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"{text!r} is not JSON ({error}): leave out --body-json to send text") from error


def _attribute(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--attribute takes KEY=VALUE, not {text!r}")
    return key, value


def _as_json(message: LeasedMessage) -> dict[str, Any]:
    """As the HTTP API gives it: bytes as base64, and said so."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return fields | {"encoding": "base64"} if isinstance(message.body, bytes) else fields


def _shown(body: Any) -> str:
    if isinstance(body, bytes):
        return body.decode(errors="backslashreplace")
    return body if isinstance(body, str) else msgspec.json.encode(body).decode()
