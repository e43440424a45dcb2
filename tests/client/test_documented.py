"""Every snippet of docs/client.md runs as it stands there, but for the address of the node."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

from raftq.client.client import AsyncClient
from raftq.client.models import NewMessage
from tests.client.nodes import Node

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^## (.*?)$|^```python\n(.*?)^```", "## Beginning\n" + PAGE, re.MULTILINE | re.DOTALL)


def under(heading: str) -> list[str]:
    """The snippets of a section."""
    found: dict[str, list[str]] = {}
    at = ""
    for title, snippet in SNIPPETS:
        at = title or at
        found.setdefault(at, []).extend([snippet] if snippet else [])
    return found[heading]


async def started(node: Node, snippet: str) -> asyncio.subprocess.Process:
    text = re.sub(r"http://127\.0\.0\.1:77\d\d", node.url, snippet)
    assert node.url in text
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", text, stdout=pipe, stderr=pipe)


async def printed(process: asyncio.subprocess.Process) -> list[str]:
    out, error = await process.communicate()
    assert (process.returncode, error.decode()) == (0, "")
    return out.decode().splitlines()


async def run(node: Node, snippet: str) -> list[str]:
    return await printed(await started(node, snippet))


def test_all_snippets_are_run_here() -> None:
    here = ["Beginning", "Retries and what they mean", "Errors", "A worker", "Stream", "Timeouts"]
    assert [len(under(heading)) for heading in here] == [1, 1, 1, 2, 1, 1]
    assert sum(1 for _, snippet in SNIPPETS if snippet) == 7


async def test_the_first_one(node: Node) -> None:
    assert await run(node, under("Beginning")[0]) == ["1-0-1 False", "{'to': 'ada'} 1", "done"]


async def test_a_request_id_of_ones_own(node: Node) -> None:
    assert await run(node, under("Retries and what they mean")[0]) == ["2"]


async def test_errors(node: Node) -> None:
    unknown, wrong, unpublished = await run(node, under("Errors")[0])
    assert unknown.startswith("There is no queue nothing-here")
    assert wrong.startswith("422 messages[0].priority ")
    assert unpublished.startswith("nothing was published: There is no topic news")


async def test_a_worker_that_is_told_to_stop(node: Node, client: AsyncClient) -> None:
    process = await started(node, under("A worker")[0])
    assert process.stdout is not None
    await client.enqueue("jobs", [NewMessage(body=1)])
    assert await process.stdout.readline() == b"working on 1\n"
    process.send_signal(signal.SIGTERM)
    assert await printed(process) == []
    stats = await client.stats("jobs")
    assert (stats["totals"]["acked"], stats["leased"]) == (1, 0)


async def test_a_transaction(node: Node, client: AsyncClient) -> None:
    assert await run(node, under("A worker")[1]) == []
    assert (await client.stats("orders"))["totals"]["acked"] == 1
    assert [one.body for one in await client.lease("invoices")] == [{"order": 7, "due": 1200}]


async def test_a_stream(node: Node) -> None:
    assert await run(node, under("Stream")[0]) == ["100"]


async def test_less_patience(node: Node) -> None:
    [line] = await run(node, under("Timeouts")[0])
    assert line.startswith("The queue small is full")


async def test_all_operations_are_listed() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE.partition("## All operations")[2]))
    operations = {name for name in vars(AsyncClient) if not name.startswith("_")} - {"close"}
    assert operations <= named
