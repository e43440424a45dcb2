"""The hostile pass: every attack on a cluster of three processes, and what must be so after each and at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first
from tests.hostile import connections, decoding, framing, paths, peers, proxies, unauthenticated, unproved, websockets
from tests.hostile.attack import Attack
from tests.hostile.target import Target

#: At a cluster with certificates, a secret and tokens.
GUARDED: tuple[ModuleType, ...] = (unauthenticated, unproved)
#: At one that has none of these. In this order: strangers at the peers' port are waited for last.
FAMILIES: tuple[ModuleType, ...] = (framing, paths, decoding, websockets, connections, proxies, peers)


@contextmanager
def attacked(folder: Path, *, secure: bool) -> Iterator[Target]:
    """A cluster of its own."""
    cluster = LocalCluster(folder, size=3, port=free_first(3, PEER_PORTS), secure=secure)
    try:
        cluster.start_all()
        target = Target(cluster)
        yield target
        target.close()
    finally:
        cluster.close(seconds=5)


class Tally:
    """What was tried, and what came back, by row of the table."""

    def __init__(self) -> None:
        self.attacks: Counter[str] = Counter()
        self.answers: dict[str, Counter[str]] = {}

    def take(self, attack: Attack, answers: list[str]) -> None:
        self.attacks[attack.row] += 1
        self.answers.setdefault(attack.row, Counter()).update(answers)


def run(target: Target, family: ModuleType, tally: Tally) -> None:
    """Every attack of the family. Raises AssertionError, naming one that came through or left something not so."""
    for attack in family.attacks():
        try:
            answers = attack.run(target)
            target.check()
        except Exception as error:
            raise AssertionError(f"{attack.row}: {attack.name}: {error}") from error
        unexpected = sorted(set(answers) - attack.may)
        assert not unexpected, f"{attack.row}: {attack.name} was answered {unexpected}"
        tally.take(attack, answers)
