"""`raftq up --tour`: a message that outlives its leader, shown on the cluster that was just started.

It prints each request as the curl line that sends the same, sends it, and prints the answer as it came. Each step is
checked; the first that is not as it should be ends the tour (exit code TOUR_FAILED).
"""

from __future__ import annotations

import secrets
import time
from typing import Any, NoReturn
from urllib.parse import urljoin

import click

from raftq.node import probe
from raftq.node.exits import Exit, Fatal
from raftq.node.local_cluster import LocalCluster
from raftq.node.probe import Access, Answer
from raftq.node.waiting import wait_until

SECONDS = 15.0
BODY = '{"pay": 250, "to": "ada"}'


class Tour:
    def __init__(self, cluster: LocalCluster, access: Access) -> None:
        self._cluster, self._access = cluster, access
        #: New in each tour, and deleted at its end.
        self._queue = f"/v1/queues/tour-{secrets.token_hex(3)}"

    def run(self) -> None:
        """Raises Fatal(TOUR_FAILED)."""
        leader = self._expect_leader()
        others = [node for node in self._cluster.running if node != leader]
        if len(others) < 2:
            _fail("it needs three nodes that run")
        through, third = others[:2]
        how = "sends us" if self._access.token is None else "passes it"
        self._title(
            f"{leader} leads. A message is enqueued through a follower, {through}, which {how} on to the leader:"
        )
        message = self._json("POST", through, "/messages", f'{{"body": {BODY}}}', 201)["messages"][0]
        self._kill(leader)
        receipt = self._lease(third, message["id"])
        self._title("The work is done, so it is acked:")
        self._ack(third, receipt)
        self._title("Nothing is lost, and nothing is left: 1 enqueued, 1 acked, 0 ready, 0 leased:")
        self._check_stats(third)
        self._restart(leader)
        self._title("The queue of this tour is deleted, through the node that was killed:")
        self._ask("DELETE", self._cluster.url(leader) + self._queue, None, (200, 204))
        click.echo("\nThe tour is complete: the leader was killed, and the message was not lost.")

    def _kill(self, leader: str) -> None:
        self._title(f"The leader is killed, with no chance to say goodbye ({leader}):")
        click.echo(f"$ kill -9 {self._cluster.pid(leader)}")
        begun = time.monotonic()
        self._cluster.kill(leader)
        click.echo(f"{self._expect_leader()} leads, {1000 * (time.monotonic() - begun):.0f} ms later")

    def _lease(self, node: str, message_id: str) -> str:
        self._title(f"The message is leased from the third node, {node}:")
        leased = self._json("POST", node, "/lease", '{"max": 10, "lease_seconds": 60}', 200)["messages"]
        if [message["id"] for message in leased] != [message_id]:
            _fail(f"exactly the message {message_id} should have been leased")
        return str(leased[0]["receipt"])

    def _ack(self, node: str, receipt: str) -> None:
        results = self._json("POST", node, "/ack", f'{{"receipts": ["{receipt}"]}}', 200)["results"]
        if [result["status"] for result in results] != ["done"]:
            _fail("the ack should be done")

    def _check_stats(self, node: str) -> None:
        stats = self._json("GET", node, "/stats", None, 200)
        if (stats["ready"], stats["leased"], stats["totals"]["enqueued"], stats["totals"]["acked"]) != (0, 0, 1, 1):
            _fail("the counts should be 0 ready, 0 leased, 1 enqueued, 1 acked")

    def _restart(self, node: str) -> None:
        self._title(f"{node} is started again, catches up, and states the same digest of its data as the others:")
        self._cluster.start(node)
        self._expect_leader()
        answer = self._ask("GET", f"{self._cluster.url(node)}/v1/cluster/digest", None, (200,)).json()
        if len(set(answer["nodes"].values())) != 1 or None in answer["nodes"].values():
            _fail("all digests should be equal")

    def _expect_leader(self) -> str:
        try:
            return self._cluster.wait_ready(SECONDS)
        except Fatal as error:
            _fail(str(error), error)

    def _json(self, method: str, node: str, path: str, body: str | None, status: int) -> Any:
        return self._ask(method, f"{self._cluster.url(node)}{self._queue}{path}", body, (status,)).json()

    def _ask(self, method: str, url: str, body: str | None, expected: tuple[int, ...]) -> Answer:
        """The answer, redirects followed. While there is no leader (503) it is asked again, as a client should."""
        data = "" if body is None else f" --json '{body}'"
        click.echo(f"$ curl -L{curl_flags(self._access)}{_method_flag(method, body)}{data} {url}")
        answer = wait_until(lambda: self._settled(method, url, body), SECONDS, f"an answer of {url}")
        if answer.status not in expected:
            _fail(f"{method} {url} should be answered {expected[0]}")
        return answer

    def _settled(self, method: str, url: str, body: str | None) -> Answer | None:
        answer = _followed(method, url, body, self._access)
        click.echo(f"{answer.status} {answer.text.strip()}".strip())
        return None if answer.status == 503 else answer

    @staticmethod
    def _title(text: str) -> None:
        click.echo(f"\n# {text}")


def _method_flag(method: str, body: str | None) -> str:
    return "" if method == ("GET" if body is None else "POST") else f" -X {method}"


def curl_flags(access: Access) -> str:
    """What curl needs for it in bash or zsh: the token from the environment, and not by way of the command line, which
    everybody on the machine can read."""
    ca = "" if access.ca_file is None else f" --cacert {access.ca_file}"
    return ca if access.token is None else f'{ca} -H @<(echo "Authorization: Bearer $RAFTQ_TOKEN")'


def _followed(method: str, url: str, body: str | None, access: Access) -> Answer:
    try:
        answer = probe.ask(method, url, body, seconds=SECONDS, access=access)
    except OSError as error:
        _fail(f"{url} does not answer: {error}", error)
    if answer.location is None:
        return answer
    there = urljoin(url, answer.location)
    click.echo(f"{answer.status} -> {there}")
    return _followed(method, there, body, access)


def _fail(why: str, cause: BaseException | None = None) -> NoReturn:
    raise Fatal(Exit.TOUR_FAILED, f"the tour failed: {why}") from cause
