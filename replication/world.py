"""What a shard takes from outside, beside the event loop that it runs on: clocks, dice, the writer and the peers.

The simulator (`raftq.chaos.simulation`) gives its own of each, so that the shard itself runs there unchanged.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

from raftq.replication.peers import Peers
from raftq.storage.environment import Environment
from raftq.storage.writer import Writer


class World(NamedTuple):
    #: Monotonic seconds, and seconds since 1970.
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    #: Numbers in [0, 1).
    dice: Callable[[], float] = random.random
    writer: Callable[[Environment], Writer] = Writer
    #: Called with the arguments of `Peers`.
    peers: Callable[..., Peers] = Peers


REAL = World()
