"""What `raftq up` does once its cluster is ready: restarts what dies, starts what it is asked to, tells what changes.

It never starts a node that is kept down, and never one again whose exit code says that a person must look first.
"""

from __future__ import annotations

import signal
import time

import click

from raftq.node import probe
from raftq.node.exits import Exit, meaning, needs_a_person
from raftq.node.local_cluster import Ended, LocalCluster

STEP_SECONDS = 0.1
#: Until a node that died is started again; doubled for each death until it has lived for a while.
RESTART_SECONDS_MIN = 0.5
RESTART_SECONDS_MAX = 30.0
LIVED_SECONDS = 60.0


def say(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')}  {line}")


class Supervisor:
    def __init__(self, cluster: LocalCluster, *, restart: bool, leader: str | None) -> None:
        self._cluster = cluster
        self._restart = restart
        self._watch = LeaderWatch(cluster, leader)
        self._born = dict.fromkeys(cluster.running, time.monotonic())
        self._due: dict[str, float] = {}
        self._delay: dict[str, float] = {}

    def run(self) -> None:
        """Until a signal raises through it."""
        while True:
            self.step()
            time.sleep(STEP_SECONDS)

    def step(self) -> None:
        for ended in self._cluster.ended():
            self._on_end(ended)
        for stray in self._cluster.strays():
            self._cluster.stop_one(stray)
            self._born.pop(stray, None)
            say(f"{stray} is stopped")
        for node in self._cluster.drop_those_that_left():
            self._born.pop(node.id, None)
            say(f"{node.id} has left the cluster; its data stays in {node.data}")
        for node in self._cluster.nodes:
            down = node.id not in self._born
            if down and not node.kept_down and time.monotonic() >= self._due.get(node.id, 0.0):
                self._start(node.id)
        self._watch.look()

    def _on_end(self, ended: Ended) -> None:
        lived = time.monotonic() - self._born.pop(ended.node)
        node = next((node for node in self._cluster.nodes if node.id == ended.node), None)
        if node is None or (node.leaves and ended.code == Exit.FENCED):
            self._cluster.keep_down(ended.node)
            say(f"{ended.node} {_how(ended)}")
        elif node.kept_down:
            say(f"{ended.node} is killed, and kept down until: raftq start {ended.node}")
        elif not self._restart or needs_a_person(ended.code):
            self._cluster.keep_down(ended.node)
            say(f"{ended.node} {_how(ended)}; it stays down until: raftq start {ended.node}")
        else:
            delay = RESTART_SECONDS_MIN if lived > LIVED_SECONDS else self._delay.get(ended.node, RESTART_SECONDS_MIN)
            self._delay[ended.node] = min(2 * delay, RESTART_SECONDS_MAX)
            self._due[ended.node] = time.monotonic() + delay
            say(f"{ended.node} {_how(ended)}; it is started again in {delay:g} s")

    def _start(self, node_id: str) -> None:
        self._due.pop(node_id, None)
        self._cluster.start(node_id)
        if node_id in self._cluster.running:
            self._born[node_id] = time.monotonic()
            say(f"{node_id} is started (process {self._cluster.pid(node_id)})")


def _how(ended: Ended) -> str:
    if ended.code < 0:
        return f"was killed by {signal.Signals(-ended.code).name}"
    return f"ended with exit code {ended.code}, {meaning(ended.code)}: {ended.last_line}"


class LeaderWatch:
    """Tells of a new leader, and of there being none for long."""

    LONG_SECONDS = 2.0

    def __init__(self, cluster: LocalCluster, leader: str | None) -> None:
        self._cluster = cluster
        self._leader = leader
        self._term = 0
        self._seen = time.monotonic()
        self._missed = False

    def look(self) -> None:
        found = self._find()
        if found is not None:
            leader, term = found
            if leader != self._leader or self._missed:
                say(f"{leader} leads (term {term})")
            self._leader, self._term, self._missed, self._seen = leader, term, False, time.monotonic()
        elif not self._missed and time.monotonic() - self._seen > self.LONG_SECONDS:
            self._missed = True
            say(self._why_none())

    def _find(self) -> tuple[str, int] | None:
        """(leader, term) as the first node says that knows one of no older term; the last leader is asked first."""
        for node_id in sorted(self._cluster.running, key=lambda node: node != self._leader):
            answer = probe.cluster(self._cluster.url(node_id), seconds=0.5, access=self._cluster.access)
            if answer and answer["leader"] in self._cluster.running and answer["term"] >= self._term:
                return answer["leader"], answer["term"]
        return None

    def _why_none(self) -> str:
        running, size = len(self._cluster.running), len(self._cluster.nodes)
        if running <= size // 2:
            return f"no leader: {running} of {size} nodes run, and writes need {size // 2 + 1}"
        return f"no leader, though {running} of {size} nodes run"
