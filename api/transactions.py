"""Transactions: enqueues and settlements over several queues, all or none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from raftq.api import auth, bodies, messages, names, problems, schemas
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.parts import parts_of
from raftq.api.problems import Problem
from raftq.api.proposals import propose, request_of
from raftq.api.schemas import EnqueueOperation, NackOperation, RejectOperation, SettleOperation, milliseconds
from raftq.storage.machine import commands, replies
from raftq.storage.machine.commands import REASON_BYTES_MAX, Operation, QueueKey, Slots

#: What the obstacles of a transaction are called.
_TYPES = {
    "unknown_queue": "unknown-queue",
    "gone": "gone",
    "full": "queue-full",
    "too_large": "too-large",
    "invalid": "invalid",
}


_Settle = commands.Ack | commands.Nack | commands.Release | commands.Reject


class _Planned(NamedTuple):
    """One operation of the request."""

    #: Several where the receipts are of several queues: then some hold nothing, and the transaction will be refused.
    commands: Sequence[Operation]
    #: As they were given; of an enqueue none.
    receipts: list[str]
    #: Of an enqueue.
    messages: int


async def transact(call: Call) -> Answer:
    """POST /v1/transactions: Do several operations over queues of one namespace, all or none. A refusal names each
    operation that stood in the way."""
    given = await call.decode(schemas.TRANSACT, large=True)
    if not given.operations:
        raise problems.invalid("operations", "give at least one")
    _check_limits(call, given.operations)
    plans = [_plan(call, f"operations[{at}]", one) for at, one in enumerate(given.operations)]
    request = _request_of(call, given)
    command = commands.Transact(names.namespace(), [one for plan in plans for one in plan.commands], request)
    reply, committed = await propose(call, command, replies.Transacted, "")
    if reply.obstacles:
        _refuse(plans, reply)
    return call.answer({"operations": _done(plans, reply), "index": committed.index})


def _request_of(call: Call, given: schemas.TransactGiven) -> commands.Request | None:
    """Where tokens are needed, a request id is one of the queues that are used, and of what is done with each: so that
    nobody is answered for, or kept from, what he may not do himself. Raises Problem 422."""
    request = request_of(given.request_id, given.request_seconds)
    if request is None or not call.node.tokens_required:
        return request
    uses = sorted({f"{kind} {one.queue}" for kind, one in map(_kind_of, given.operations)})
    used = hashlib.sha256("\n".join(uses).encode()).hexdigest()[:32]
    return commands.Request(f"{request.id}\0{used}", request.keep_ms)


def _kind_of(operation: schemas.OperationGiven, field: str = "") -> tuple[str, EnqueueOperation | SettleOperation]:
    """Raises Problem 422 unless it is one."""
    found = [(kind, one) for kind in schemas.OPERATIONS if (one := getattr(operation, kind)) is not None]
    if len(found) != 1:
        raise problems.invalid(field, f"is one of {', '.join(schemas.OPERATIONS)}, this has {len(found)}")
    return found[0]


def _check_limits(call: Call, operations: list[schemas.OperationGiven]) -> None:
    limits = call.node.limits
    kinds = [_kind_of(operation, f"operations[{at}]")[1] for at, operation in enumerate(operations)]
    for name, most in (("messages", limits.batch_messages), ("receipts", limits.lease_messages)):
        count = sum(len(getattr(one, name, ())) for one in kinds)
        if count > most:
            detail = f"A transaction takes at most {most:,} {name} over all operations, this has {count:,}."
            raise problems.too_large("operations", detail)


def _plan(call: Call, field: str, operation: schemas.OperationGiven) -> _Planned:
    kind, given = _kind_of(operation, field)
    with _within(f"{field}.{kind}"):
        queue = names.queue_key(given.queue)
        auth.require(call, "produce" if kind == "enqueue" else "consume", given.queue)
        if isinstance(given, EnqueueOperation):
            return _Planned([_enqueue(call, queue, given)], [], len(given.messages))
        if not given.receipts:
            raise problems.invalid("receipts", "give at least one")
        queues = names.parse_receipts(list(dict.fromkeys(given.receipts)))
        settles = [_settle(kind, queue, number, leases, given) for number, leases in queues.items()]
        return _Planned(settles, given.receipts, 0)


def _enqueue(call: Call, queue: QueueKey, given: EnqueueOperation) -> commands.Enqueue:
    if not given.messages:
        raise problems.invalid("messages", "give at least one")
    packed = [
        bodies.packed(message, call.content_type, f"messages[{at}].", call.node.limits)
        for at, message in enumerate(given.messages)
    ]
    return commands.Enqueue(queue, parts_of(given.messages, packed), None, given.auto_create)


def _settle(kind: str, queue: QueueKey, number: int, leases: list[Slots], given: SettleOperation) -> _Settle:
    if isinstance(given, NackOperation):
        delay_ms = None if given.delay_seconds is None else milliseconds(given.delay_seconds)
        return commands.Nack(queue, number, leases, delay_ms)
    if isinstance(given, RejectOperation):
        return commands.Reject(queue, number, leases, _checked(given.reason))
    return commands.Ack(queue, number, leases) if kind == "ack" else commands.Release(queue, number, leases)


def _checked(reason: str | None) -> str:
    if reason is not None and len(reason.encode()) > REASON_BYTES_MAX:
        raise problems.invalid("reason", f"give at most {REASON_BYTES_MAX:,} bytes of text")
    return reason or ""


@contextmanager
def _within(where: str) -> Iterator[None]:
    """Problems name their field from the root of the request on."""
    try:
        yield
    except Problem as problem:
        inner = problem.fields.get("field")
        if inner is not None:
            problem.fields["field"] = f"{where}.{inner}"
            problem.detail = problem.detail.replace(f"{inner}: ", f"{where}.{inner}: ", 1)
        raise


def _done(plans: list[_Planned], reply: replies.Transacted) -> list[dict[str, Any]]:
    """What each operation would be answered alone. Raises Problem 409 when the first reply was to other operations."""
    enqueued = iter(reply.enqueued)
    operations: list[dict[str, Any]] = []
    for plan in plans:
        if not plan.messages:
            operations.append({"results": [{"receipt": one, "status": "done"} for one in plan.receipts]})
            continue
        found = next(enqueued, None)
        places = [] if found is None else messages.places(found)
        if found is None or len(places) != plan.messages:
            raise Problem("conflict", "This request_id was used before, with other operations: choose another.")
        items = [
            {"id": names.message_id(queue_number, priority, number), "duplicate": duplicate}
            for queue_number, (priority, number, duplicate) in zip(messages.numbers(found), places, strict=False)
        ]
        operations.append({"messages": items})
    return operations


def _refuse(plans: list[_Planned], reply: replies.Transacted) -> NoReturn:
    owners = [(at, one) for at, plan in enumerate(plans) for one in plan.commands]
    found: dict[int, dict[str, Any]] = {}
    for obstacle in reply.obstacles:
        at, command = owners[obstacle.operation]
        told = found.setdefault(at, {"operation": at, "type": _TYPES.get(obstacle.reason, "conflict")})
        if obstacle.reason == "gone" and not isinstance(command, commands.Enqueue):
            told["detail"] = "These receipts hold no message any more, or an operation before names them too."
            told.setdefault("receipts", []).extend(_gone(command, obstacle.results))
        elif obstacle.reason == "unknown_queue":
            told["detail"] = problems.unknown_queue(command.queue).detail
        else:
            told["detail"] = obstacle.detail
    which = ", ".join(str(at) for at in found)
    detail = f"Nothing was done: operations {which} (from 0) cannot be done. Leave them out, or lease anew."
    raise Problem("transaction-refused", detail, operations=list(found.values()))


def _gone(command: _Settle, results: list[bytes]) -> list[str]:
    return [
        f"{command.queue_number}.{named.lease_id}.{slot}"
        for named, statuses in zip(command.leases, results, strict=True)
        for slot, status in zip(named.slots, statuses, strict=True)
        if status == replies.GONE
    ]
