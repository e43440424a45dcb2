"""The load of `/v1/stream`: single enqueues pipelined on one connection, in a process of its own.

`python -m raftq.bench.streaming URL QUEUE DEPTH SECONDS BODY_CHARACTERS` keeps DEPTH enqueues in flight, each an
operation with an id of its own, in msgpack frames: as many new ones go out as were answered. It prints one line of
JSON. A latency is from the frame that an operation left with to the frame that answered it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import struct
import subprocess
import sys
import time
from typing import Any

import aiohttp
import msgspec

from raftq.bench.load import Latency, Load, LoadFailed
from raftq.bench.measure import percentile

_ID = struct.Struct(">I")


class _Item(msgspec.Struct, gc=False):
    id: int
    problem: dict[str, Any] | None = None


_items = msgspec.msgpack.Decoder(list[_Item])


def enqueue(url: str, queue: str, *, depth: int, seconds: int, body_characters: int) -> Load:
    """Run the load on the node at `url`. Raises LoadFailed when anything but enqueued messages came back."""
    arguments = [url, queue, str(depth), str(seconds), str(body_characters)]
    command = [sys.executable, "-m", "raftq.bench.streaming", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadFailed(f"the stream's load ended with {done.returncode}: {done.stderr[-1000:]}")
    seen = json.loads(done.stdout)
    latency = Latency(seen["p50_ms"], seen["p99_ms"])
    return Load(seen["requests"], seen["seconds"], latency, seen["cores"])


async def run(url: str, queue: str, depth: int, seconds: float, body_characters: int) -> dict[str, Any]:
    operation = msgspec.msgpack.encode({"op": "enqueue", "queue": queue, "body": "x" * body_characters})
    # One entry more than `operation` has: the id, as four bytes.
    head, rest = bytes([operation[0] + 1]) + b"\xa2id\xce", operation[1:]
    sent_at = [0.0] * depth
    took: list[float] = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            url.rstrip("/") + "/v1/stream", protocols=("raftq.v1.msgpack",), max_msg_size=0, decode_text=False
        ) as socket,
    ):
        names = list(range(depth))
        cpu, began = time.process_time(), time.perf_counter()
        end = began + seconds
        now = began
        in_flight = 0
        while names or in_flight:
            if names and now < end:
                for name in names:
                    sent_at[name] = now
                pieces = [head + _ID.pack(name) + rest for name in names]
                await socket.send_bytes(b"\xdd" + _ID.pack(len(pieces)) + b"".join(pieces))
                in_flight += len(names)
            elif not in_flight:
                break
            answers = _items.decode(await socket.receive_bytes())
            now = time.perf_counter()
            names = []
            for answer in answers:
                if answer.problem is not None:
                    raise LoadFailed(str(answer.problem))
                names.append(answer.id)
                took.append(now - sent_at[answer.id])
            in_flight -= len(names)
        elapsed = now - began
    took.sort()
    return {
        "requests": len(took),
        "seconds": elapsed,
        "p50_ms": percentile(took, 0.5) * 1e3,
        "p99_ms": percentile(took, 0.99) * 1e3,
        "cores": (time.process_time() - cpu) / elapsed,
    }


def main(arguments: list[str]) -> int:
    url, queue, depth, seconds, body_characters = arguments
    gc.disable()  # it lives for seconds
    print(json.dumps(asyncio.run(run(url, queue, int(depth), float(seconds), int(body_characters)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
