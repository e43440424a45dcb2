"""Who belongs to the cluster: configurations, the one step from each to the next, and why a step is refused.

A configuration is an entry of the log. It is in force on a node from the moment it is in that node's log, and no more
once it is truncated. Each differs from the last by at most one voter, and a leader makes the next one only when the
last is committed, so that the majorities of any two that follow each other overlap (Ongaro's thesis, 4.1).

Nothing here changes anything: these are values, and functions of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from raftq.replication.shard import ChangeRefused


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    peer_address: str
    #: False: a learner. It gets everything, is counted nowhere, and is promoted when it has caught up.
    voter: bool = True
    #: Of its data folder, once the leader has met it. Another folder is not this member.
    uuid: str | None = None
    #: The member that goes when this one is a voter.
    replaces: str | None = None
    #: Of the folder that a new one is to take the place of, under the same name.
    void: str | None = None


class Configuration(msgspec.Struct, frozen=True):
    #: In the order of their ids.
    members: dict[str, Member]

    @property
    def voters(self) -> tuple[str, ...]:
        return tuple(node for node, member in self.members.items() if member.voter)

    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    def addresses(self) -> dict[str, str]:
        return {node: member.peer_address for node, member in self.members.items()}

    def with_member(self, node: str, member: Member) -> Configuration:
        return Configuration(dict(sorted((self.members | {node: member}).items())))

    def without(self, node: str) -> Configuration:
        return Configuration({other: member for other, member in self.members.items() if other != node})

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


class Memberships:
    """The configurations that a log holds beyond the applied index, and the last one at or below it, the base. It is
    kept with the tables, the others are in the log."""

    def __init__(self, base: tuple[int, Configuration]) -> None:
        self._stack = [base]
        #: The base changed since it was last encoded.
        self.dirty = False

    @property
    def current(self) -> Configuration:
        return self._stack[-1][1]

    @property
    def index(self) -> int:
        """Of the entry of the current one; 0 for the one that the cluster began with."""
        return self._stack[-1][0]

    @property
    def before(self) -> Configuration:
        """The one before the current one, or the current one when that is settled."""
        return self._stack[-2][1] if len(self._stack) > 1 else self._stack[-1][1]

    def all(self) -> list[Configuration]:
        return [configuration for _, configuration in self._stack]

    @property
    def base(self) -> Configuration:
        return self._stack[0][1]

    def note(self, index: int, configuration: Configuration) -> None:
        self._stack.append((index, configuration))

    def truncate(self, index: int) -> None:
        """The log was cut from `index` on. Fault 22: what was in force before is in force again."""
        while self._stack[-1][0] >= index:
            self._stack.pop()

    def settle(self, applied: int) -> None:
        while len(self._stack) > 1 and self._stack[1][0] <= applied:
            del self._stack[0]
            self.dirty = True

    def votes(self, node: str, commit_index: int) -> bool:
        """`node` is a voter, or was until a change that is not committed: it may be needed to commit that."""
        for index, configuration in reversed(self._stack):
            if node in configuration.voters:
                return True
            if index <= commit_index:
                return False
        return False

    def encode(self) -> bytes:
        self.dirty = False
        return msgspec.msgpack.encode(self._stack[0])


def base_of(stored: bytes) -> tuple[int, Configuration]:
    """What `Memberships.encode` gave. Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(stored, type=tuple[int, Configuration])


def bootstrap(addresses: dict[str, str]) -> Configuration:
    """Of a cluster that begins: every node a voter."""
    return Configuration({node: Member(addresses[node]) for node in sorted(addresses)})


def decode(data: bytes | memoryview) -> Configuration:
    """Raises ValueError."""
    return msgspec.msgpack.decode(data, type=Configuration)


def added(
    now: Configuration, node: str, peer_address: str, replaces: str | None, live: Collection[str]
) -> Configuration:
    """With `node` as a learner. With its own name in `replaces`, its folder is new and what the old one promised is
    void. Raises ChangeRefused. `live`: who answers the leader, the leader included."""
    if replaces is not None and replaces not in now.members:
        raise ChangeRefused(f"{replaces} is no member and cannot be replaced: the members are {', '.join(now.members)}")
    learner = next((other for other, member in now.members.items() if not member.voter and other != replaces), None)
    if learner is not None and learner != node:
        raise ChangeRefused(f"{learner} is still catching up: wait until it is a voter, or remove it")
    if node in now.members and replaces != node:
        raise ChangeRefused(f"{node} is a member already: choose another name, or replace it by its own name")
    for other, member in now.members.items():
        if member.peer_address == peer_address and other not in (node, replaces):
            raise ChangeRefused(f"{peer_address} is the peer address of {other}: give {node} its own")
    if replaces == node:
        before = now.members[node]
        newcomer = Member(peer_address, voter=False, void=before.uuid, replaces=before.replaces)
    else:
        newcomer = Member(peer_address, voter=False, replaces=replaces)
    after = now.with_member(node, newcomer)
    _check_quorum(now, after, set(live) - {node})
    return after


def removed(now: Configuration, node: str, live: Collection[str]) -> Configuration:
    """Raises ChangeRefused."""
    if node not in now.members:
        raise ChangeRefused(f"{node} is no member: the members are {', '.join(now.members)}")
    after = now.without(node)
    if not after.voters:
        raise ChangeRefused(f"{node} is the only voter: add another node first")
    _check_quorum(now, after, live)
    return after


def _check_quorum(now: Configuration, after: Configuration, live: Collection[str]) -> None:
    """A change must not leave a cluster that cannot go on without nodes that do not answer."""
    if now.voters == after.voters:
        return
    answering = [voter for voter in after.voters if voter in live]
    if len(answering) < after.majority():
        missing = ", ".join(sorted(set(after.voters) - set(live)))
        raise ChangeRefused(
            f"of the voters that would remain ({', '.join(after.voters)}) only {len(answering)} answer, and writes "
            f"need {after.majority()}: bring back {missing} first"
        )


def next_step(
    now: Configuration,
    *,
    uuids: dict[str, str],
    live: Collection[str],
    caught_up: Callable[[str], bool],
) -> Configuration | None:
    """What the leader does by itself, one step at a time: note the uuids of members that it has met, promote a learner
    that has caught up, remove what was replaced. `uuids`: of the nodes that are connected."""
    met = {
        node: msgspec.structs.replace(member, uuid=uuids[node], void=None)
        for node, member in now.members.items()
        if member.uuid is None and uuids.get(node, member.void) != member.void
    }
    if met:
        return Configuration(now.members | met)
    for node, member in now.members.items():
        if not member.voter:
            promoted = now.with_member(node, msgspec.structs.replace(member, voter=True))
            if member.uuid is not None and node in live and caught_up(node) and _can_go_on(promoted, live):
                return promoted
        elif member.replaces is not None:
            done = now.with_member(node, msgspec.structs.replace(member, replaces=None))
            after = done.without(member.replaces)
            if member.replaces not in now.members or _can_go_on(after, live):
                return after
    return None


def _can_go_on(configuration: Configuration, live: Collection[str]) -> bool:
    return sum(voter in live for voter in configuration.voters) >= configuration.majority()
