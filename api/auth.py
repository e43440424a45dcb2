"""Who asks, and whether they may: the tokens of requests, and what each route needs of them.

Owns the two problems `unauthorized` and `forbidden`, and what a grant covers. A request is looked at once, at its head;
what it names beside its path (the dead-letter queue of a queue, the target of a redrive, each operation of a
transaction or a stream) is asked for by its handler, with `require`.
Invariant: where the node needs tokens, nothing of a request is read, told or done before its token was found good for
it. Who forwarded it counts for nothing. Where the node needs none, nothing is looked at.
"""

from __future__ import annotations

import asyncio
import hmac
from enum import Enum
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, hdrs

from raftq.api import names, problems, token
from raftq.api.problems import Problem
from raftq.replication.shard import NotLeader
from raftq.storage.machine.commands import Scope
from raftq.storage.machine.records import TokenRecord

if TYPE_CHECKING:
    from raftq.api.app import Api
    from raftq.api.call import Call
    from raftq.api.routing import Route

#: Of a token, or a grant: of every namespace, on every name.
ALL = "*"
#: Between two looks at the tokens of the WebSockets.
LOOK_SECONDS = 1.0
#: Compared with when there is no token of an id: the digest of no secret that anybody knows.
_NOBODY = bytes(32)


class Need(Enum):
    """What a route needs of the token; as the documents say it. The name of a path is its first parameter."""

    NOTHING = "nothing, not even a token"
    TOKEN = "any token"  # noqa: S105 - what is needed, not a secret
    PRODUCE = "`produce` on the name in the path"
    CONSUME = "`consume` on the name in the path"
    ADMIN = "`admin` on the name in the path"
    ANY = "any scope on the name in the path"
    LISTED = "any scope on all names that begin with `prefix` (`*` without one), or on `queue`"
    HEALTH = "nothing; with a query as of lists"
    SUMS = "any scope on `*` in the namespace `*`"
    CLUSTER = "a cluster token: `admin` on `*` in the namespace `*`"
    EACH = "any token; each operation or event by itself"


_SCOPES: dict[Need, Scope | None] = {
    Need.PRODUCE: "produce",
    Need.CONSUME: "consume",
    Need.ADMIN: "admin",
    Need.ANY: None,
}


# A request


def identify(call: Call, route: Route) -> None:
    """Set `call.token`; None stays where the route needs none, and where this node knows none of that id.
    Raises Problem 401, and 503 while a snapshot takes the place of the tables."""
    if _needs_nothing(call, route):
        return
    given = _given(call)
    try:
        found = call.node.shard.stale().token(given.id)
    except NotLeader:
        raise problems.no_leader() from None
    # The same work for an id that is not known.
    same = hmac.compare_digest(token.digest(given.secret), _NOBODY if found is None else found.digest)
    if found is None:
        return
    if not same:
        raise unknown()
    _check_expiry(call.api, found)
    call.token = found


def authorize(call: Call, route: Route) -> bool:
    """Enter the namespace of the token; False where the leader has to judge, to whom the request goes on anyway: a
    token that was made a moment ago is known there first. Raises Problem 401 and 403."""
    if _needs_nothing(call, route):
        return True
    found = call.token
    if found is None:
        if call.node.leads() or not (route.relayed or route.is_sent_on(call)):
            raise unknown()
        return route.relayed  # by its handler
    _enter_namespace(call, found)
    needs = route.needs
    if needs in _SCOPES:
        _require(call, found, _SCOPES[needs], call.parameters[0])
    elif needs is Need.LISTED or needs is Need.HEALTH:
        _require_listed(call, found)
    elif needs is Need.SUMS:
        if found.namespace != ALL or not _covers_all(found, None):
            raise _forbidden("a grant on * in the namespace *: the sums are over all namespaces")
    elif needs is Need.CLUSTER:
        if found.namespace != ALL or not _covers_all(found, "admin"):
            raise _forbidden("admin on * in the namespace *")
    else:
        assert needs is Need.TOKEN or needs is Need.EACH, needs
    return True


def require(call: Call, scope: Scope, name: str) -> None:
    """Of a queue or topic that a request names beside its path. Raises Problem 403."""
    if not call.node.tokens_required:
        return
    if call.token is None:
        raise unknown()
    _require(call, call.token, scope, name)


def check_still(call: Call) -> None:
    """Of a request that waited. Raises Problem 401 when its token was revoked, or has expired, meanwhile."""
    if call.token is not None and not is_good(call.api, call.token):
        raise unknown()


def _needs_nothing(call: Call, route: Route) -> bool:
    return route.needs is Need.NOTHING or (route.needs is Need.HEALTH and "?" not in call.target)


def _given(call: Call) -> token.Token:
    """Raises Problem 401."""
    scheme, _, text = call.request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    given = token.parse(text.strip()) if scheme.lower() == "bearer" else None
    if given is None:
        raise _unauthorized(
            "Send a token, as Authorization: Bearer rq_... A cluster token makes them: POST /v1/tokens."
        )
    return given


def _check_expiry(api: Api, found: TokenRecord) -> None:
    if _has_expired(api, found):
        raise _unauthorized("This token has expired: use another.")


def _has_expired(api: Api, found: TokenRecord) -> bool:
    return found.expires_ms is not None and found.expires_ms <= api.node.shard.wall_ms()


def _enter_namespace(call: Call, found: TokenRecord) -> None:
    """A token of one namespace stands for it, with or without the header."""
    if found.namespace == ALL:
        return
    if names.NAMESPACE_HEADER in call.request.headers:
        if names.namespace() != found.namespace:
            raise _forbidden(f"the namespace {names.namespace()}: it is of {found.namespace} alone")
    else:
        names.enter(found.namespace)


def _require(call: Call, found: TokenRecord, scope: Scope | None, name: str) -> None:
    if not may(call.api, found, scope, names.namespace(), name):
        raise _forbidden(f"{scope or 'any scope'} on {name[:200]} in the namespace {names.namespace()}")


def _require_listed(call: Call, found: TokenRecord) -> None:
    queue = call.query.get("queue")
    if queue is not None:
        return _require(call, found, None, queue)
    prefix = call.query.get("prefix", "")
    if not any(grant.names.endswith(ALL) and prefix.startswith(grant.names[:-1]) for grant in found.grants):
        raise _forbidden(f"a grant on {prefix[:200]}* in the namespace {names.namespace()}; or give a prefix")
    return None


# Tokens


def may(api: Api, found: TokenRecord, scope: Scope | None, namespace: str, name: str) -> bool:
    """Whether the token has the scope (None: any) on the queue, topic or schedule. A grant on a name that has
    partitions is one on each of them, and on nothing else that is only named alike."""
    if found.namespace not in (ALL, namespace):
        return False
    if _covers(found, scope, name):
        return True
    whole, dot, number = name.rpartition(".")
    if not dot or not number.isdecimal() or not names.is_name(whole) or not _covers(found, scope, whole):
        return False
    count = api.node.shard.stale().partitions(f"{namespace}/{whole}")
    return count is not None and number in map(str, range(count))


def is_good(api: Api, found: TokenRecord) -> bool:
    """It was neither revoked nor has it expired, as far as this node knows."""
    try:
        now = api.node.shard.stale().token(found.id)
    except NotLeader:
        return True  # a snapshot takes the place of the tables: it is looked at again
    return now is not None and now.digest == found.digest and not _has_expired(api, found)


def _covers(found: TokenRecord, scope: Scope | None, name: str) -> bool:
    for grant in found.grants:
        if scope is None or grant.scope == scope:
            covered = grant.names
            if covered == name or (covered[-1] == ALL and name.startswith(covered[:-1])):
                return True
    return False


def _covers_all(found: TokenRecord, scope: Scope | None) -> bool:
    return any(grant.names == ALL and scope in (None, grant.scope) for grant in found.grants)


class Watch:
    """Ends the WebSockets whose tokens are good no more. One look over all of them a second, while there are any."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self.look)

    def look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        for connection in list(self._api.connections):
            if connection.token is not None:
                self.begin()
                if not is_good(self._api, connection.token):
                    connection.end(WSCloseCode.POLICY_VIOLATION, "the token was revoked, or has expired")


# Problems


def _unauthorized(detail: str) -> Problem:
    return Problem("unauthorized", detail)


def unknown() -> Problem:
    """The same for one that never was and one that is no more, and whatever is wrong with it."""
    return _unauthorized("This token is not good here: it was revoked, or never was. Use another.")


def _forbidden(lacks: str) -> Problem:
    return Problem("forbidden", f"This token lacks {lacks}. Use one that has it.")
