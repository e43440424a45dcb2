"""The texts that name things: queues, message ids, receipts. Made here, read back here, and nowhere else.

A message id is `{queue number}-{priority}-{number}`, a receipt `{queue number}.{lease id}.{slot}`. Clients see them as
opaque. Numbers of queues are never used again: an id or a receipt cannot mean a message of a later queue of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from functools import lru_cache
from string import ascii_letters, digits

from raftq.api import problems
from raftq.storage.machine.commands import QueueKey, Slots
from raftq.storage.machine.replies import Leased

NAMESPACE = "default"
NAME_CHARACTERS_MAX = 128
_NAME_CHARACTERS = frozenset(ascii_letters + digits + "._-")

#: What every name matches.
NAME_PATTERN = rf"^(?!\.\.?$)[A-Za-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}$"
#: What the names of a grant match, and the namespace of a token.
NAMES_PATTERN = (
    rf"^(?!\.\.?$)([A-Za-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}|[A-Za-z0-9._-]{{0,{NAME_CHARACTERS_MAX - 1}}}\*)$"
)
NAMESPACES_PATTERN = rf"^(?!\.\.?$)([A-Za-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}|\*)$"
#: What every receipt matches.
RECEIPT_PATTERN = r"^(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,2})$"
#: Request ids and dedup ids.
ID_BYTES_MAX = 128
_U63 = 1 << 63
_DIGITS_MAX = 19


#: Names the namespace of a request.
NAMESPACE_HEADER = "Raftq-Namespace"
#: Of the request that is served in this context. Every key is made here, so none can be of another namespace.
_namespace: ContextVar[str] = ContextVar("namespace", default=NAMESPACE)


def enter(namespace: str | None) -> None:
    """All that is served in this context from here on is of this namespace; None: the default. Raises Problem 422."""
    _namespace.set(NAMESPACE)
    if namespace is not None:
        _namespace.set(checked_name(NAMESPACE_HEADER, namespace))


def namespace() -> str:
    return _namespace.get()


def queue_key(name: str, field: str = "queue") -> QueueKey:
    """Of the context's namespace. Raises Problem 422, naming the field, unless `name` is 1 to 128 of A-Z a-z 0-9 . _ -
    and not `.` or `..`, which a client would resolve before sending."""
    return _key(_namespace.get(), name, field)


@lru_cache(8192)
def _key(namespace: str, name: str, field: str) -> QueueKey:
    return f"{namespace}/{checked_name(field, name)}"


def checked_name(field: str, name: str) -> str:
    """As `queue_key` says. Raises Problem 422."""
    if not is_name(name):
        raise problems.invalid(
            field, f"a name is 1 to {NAME_CHARACTERS_MAX} of A-Z a-z 0-9 . _ - and not {name[:40]!r}"
        )
    return name


def is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_CHARACTERS_MAX and _NAME_CHARACTERS.issuperset(text) and text not in (".", "..")


def queue_name(key: QueueKey) -> str:
    return key.partition("/")[2]


def parts(key: QueueKey) -> tuple[str, str]:
    """Namespace and name."""
    namespace, _, name = key.partition("/")
    return namespace, name


def checked_id(field: str, value: str) -> str:
    """A request id, dedup id, replace key or group key. Raises Problem 422."""
    if not value or len(value) > ID_BYTES_MAX or len(value.encode()) > ID_BYTES_MAX:
        raise problems.invalid(field, f"give 1 to {ID_BYTES_MAX} bytes of text")
    return value


def message_id(queue_number: int, priority: int, number: int) -> str:
    return f"{queue_number}-{priority}-{number}"


def receipt(leased: Leased, slot: int) -> str:
    return f"{leased.queue_number}.{leased.lease_id}.{slot}"


def parse_message_id(text: str) -> tuple[int, int, int] | None:
    """(queue number, priority, number); None when `text` is no message id."""
    try:
        queue_number, priority, number = map(_number, text.split("-"))
    except ValueError:
        return None
    return (queue_number, priority, number) if priority <= 9 else None


#: A lease holds at most 1,000 messages. The lookup checks and converts in one step.
_SLOTS = {str(slot): slot for slot in range(1000)}


def parse_receipts(receipts: Sequence[str]) -> dict[int, list[Slots]]:
    """Queue number -> leases with their slots, in the order of `receipts`, which are distinct.
    Raises Problem 422 naming one that is malformed."""
    queues: dict[int, list[Slots]] = {}
    leases: dict[str, list[int]] = {}
    for receipt in receipts:
        lease, _, slot = receipt.rpartition(".")
        try:
            slots = leases.get(lease)
            if slots is None:
                slots = leases[lease] = _add_lease(queues, lease)
            slots.append(_SLOTS[slot])
        except (KeyError, ValueError) as error:
            place = f"receipts[{receipts.index(receipt)}]"
            raise problems.invalid(place, f"{receipt[:60]!r} is no receipt: send it as it came") from error
    return queues


def _add_lease(queues: dict[int, list[Slots]], lease: str) -> list[int]:
    """Raises ValueError unless `lease` is `{queue number}.{lease id}` as `receipt` writes them."""
    queue_number, lease_id = map(_number, lease.split("."))
    slots = Slots(lease_id, [])
    queues.setdefault(queue_number, []).append(slots)
    return slots.slots


def _number(text: str) -> int:
    if len(text) > _DIGITS_MAX or not text.isascii() or str(number := int(text)) != text or not 0 <= number < _U63:
        raise ValueError(text)
    return number
