"""The subscriptions of one stream: messages are leased and pushed while there is credit.

A push takes its messages from the credit; settling them on the same connection gives it back. The next lease is asked
for when the last push has left, so that a client that does not read has at most one waiting here. What passes (too much
is waiting, or leadership was in doubt) is told to nobody: the lease is asked for again after its Retry-After.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from raftq.api import leases, names, problems
from raftq.api.frames import CREDIT_MAX, AddCredit, Extend, Settlement, Subscribe, Unsubscribe
from raftq.api.problems import Problem
from raftq.api.reads import queue_of
from raftq.api.schemas import milliseconds
from raftq.api.sockets import wake
from raftq.api.stream_call import StreamCall
from raftq.replication.shard import Committed, OutcomeUnknown, Overloaded
from raftq.storage.machine import commands

if TYPE_CHECKING:
    from raftq.api.streams import Stream

SUBSCRIPTIONS_MAX = 64
#: Of bodies in one push, but for a single larger message.
PUSH_BYTES_MAX = 1024 * 1024
#: A lease is asked for anew after so long without a message.
WAIT_SECONDS = 60.0
#: Receipts that are remembered to return their credit.
PUSHED_MAX = CREDIT_MAX


class Subscription:
    __slots__ = ("call", "credit", "id", "more", "rest", "task")

    def __init__(self, call: StreamCall, name: int | str, credit: int) -> None:
        self.call, self.id, self.credit = call, name, credit
        #: Waits for credit.
        self.more: asyncio.Future[None] | None = None
        #: Waits until a lease may be asked for again.
        self.rest: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def add(self, credit: int) -> None:
        self.credit = min(self.credit + credit, CREDIT_MAX)
        wake(self.more)

    def end(self) -> None:
        """It, or its connection, ends: it waits no more, neither for credit nor for its next lease."""
        wake(self.more)
        wake(self.rest)

    async def wait_for_credit(self) -> None:
        self.more = asyncio.get_running_loop().create_future()
        await self.more

    async def wait(self, seconds: float) -> None:
        """Until `seconds` have passed, or it ends."""
        if self.call.gone:
            return
        loop = asyncio.get_running_loop()
        self.rest = loop.create_future()
        timer = loop.call_later(seconds, wake, self.rest)
        try:
            await self.rest
        finally:
            timer.cancel()


class Subscriptions:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._all: dict[int | str, Subscription] = {}
        #: Receipt -> the subscription that pushed it, the oldest first.
        self._pushed: dict[str, Subscription] = {}

    async def subscribe(self, given: Subscribe) -> dict[str, int]:
        """Raises Problem and ShardError."""
        stream = self._stream
        call = StreamCall(stream, given.queue, given)
        stream.require(call, "consume")
        queue = call.queue
        if given.id in self._all:
            raise Problem("conflict", "There is a subscription of this id on this connection: choose another.")
        if len(self._all) >= SUBSCRIPTIONS_MAX:
            raise problems.too_large("id", f"A connection takes at most {SUBSCRIPTIONS_MAX} subscriptions.")
        subscription = self._all[given.id] = Subscription(call, given.id, given.credit)
        try:
            queue_of(await stream.node.shard.read(), queue)
        except BaseException:
            del self._all[given.id]
            raise
        subscription.task = asyncio.ensure_future(self._pump(subscription))
        return {"credit": subscription.credit}

    def add_credit(self, given: AddCredit) -> dict[str, int]:
        """Raises Problem 422."""
        subscription = self._named(given)
        subscription.add(given.credit)
        return {"credit": subscription.credit}

    async def unsubscribe(self, given: Unsubscribe) -> dict[str, int]:
        """When this returns, nothing more is pushed. Raises Problem 422."""
        subscription = self._named(given)
        subscription.call.left = True
        subscription.end()
        self._stream.abandon(subscription.call)
        if subscription.task is not None:
            await asyncio.wait([subscription.task])
        return {}

    def _named(self, given: AddCredit | Unsubscribe) -> Subscription:
        subscription = self._all.get(given.subscription)
        if subscription is None:
            raise problems.invalid("subscription", "there is none of this id on this connection, or it has ended")
        return subscription

    def settled(self, settlement: Settlement) -> None:
        """It has an answer: its messages give their credit back."""
        if not self._pushed or type(settlement) is Extend:
            return
        for receipt in settlement.receipts:
            subscription = self._pushed.pop(receipt, None)
            if subscription is not None:
                subscription.add(1)

    def end(self) -> None:
        """The connection ends."""
        for subscription in self._all.values():
            subscription.end()

    async def _pump(self, subscription: Subscription) -> None:
        """Lease and push while there is credit, until the subscription ends."""
        stream, call = self._stream, subscription.call
        try:
            while not call.gone:
                if not subscription.credit:
                    await subscription.wait_for_credit()
                    continue
                try:
                    await self._turn(subscription)
                except (Overloaded, OutcomeUnknown) as error:
                    await subscription.wait(problems.of_shard(error).retry_after or 1)
        except ConnectionError:
            pass  # it has ended
        except Exception as error:
            problem = stream.problem_of(error)
            stream.say([stream.format.item(subscription.id, b"ended", stream.format.encode(problem.document()))])
        finally:
            self._all.pop(subscription.id, None)

    async def _turn(self, subscription: Subscription) -> None:
        """One lease, and its push. Raises Problem, ShardError, and ConnectionError when it has ended."""
        call = subscription.call
        most = min(subscription.credit, self._stream.node.limits.lease_messages)
        lease_ms = None if call.given.lease_seconds is None else milliseconds(call.given.lease_seconds)
        command = commands.Lease(call.queue, most, lease_ms, max_bytes=PUSH_BYTES_MAX)
        committed = await leases.take(call, command, WAIT_SECONDS)
        if committed is not None and committed.messages:
            await self._push(subscription, command, committed)

    async def _push(self, subscription: Subscription, command: commands.Lease, committed: Committed) -> None:
        """Raises ConnectionResetError when it did not leave: then the messages are handed back."""
        call, reply, stream = subscription.call, committed.reply, self._stream
        receipts = [names.receipt(reply, slot) for slot, one in enumerate(committed.messages or ()) if one is not None]
        subscription.credit -= len(receipts)
        self._pushed.update(dict.fromkeys(receipts, subscription))
        while len(self._pushed) > PUSHED_MAX:
            del self._pushed[next(iter(self._pushed))]
        try:
            await stream.leave(stream.format.item(subscription.id, b"push", leases.leased(call, committed).body))
        except ConnectionError:
            leases.give_back(call, command, reply)
            raise
