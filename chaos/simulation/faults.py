"""The fault schedule: what goes wrong in a run, and when, as plain values made from the seed before the run begins.

Any of them can be left out (`minimise`), so each brings its own end: a crash its restart, a cut its mending, a wiped
folder its replacement. A node is named, or chosen when its time has come (`leader`, `follower`).

Crashes, pauses and cuts may hit any number of nodes at once: Raft promises safety then, and progress when they end.
What destroys data is kept within what Raft promises. A node that forgot its vote or entries that it acknowledged has
failed for good, and only a minority may ever have: while such a node is not replaced, one more lost would be too many
for what was committed with its help. So a wiped or an old folder comes alone, in a quiet period that begins and ends
with all others up and connected, long enough before that each peer has met the node and has seen what it acknowledged
(`roster`), and long enough after that it is fenced, replaced and caught up before anything else happens.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

import msgspec

#: Simulated seconds before the first fault and after the last.
CALM_SECONDS: Final = 1.5
QUIET_SECONDS: Final = 9.0
#: Into a quiet period until the folder is touched.
SETTLE_SECONDS: Final = 3.0
FAULTS_MIN: Final = 20
#: Most faults last so long at most.
LASTS: Final = 6.0
#: The ordinary schedule, of all kinds; so large a part of the seeds has a storm instead.
MIXED: Final = "mixed"
STORMS: Final = 0.2


class Fault(msgspec.Struct, frozen=True):
    at: float
    kind: str
    arguments: dict[str, Any] = {}

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.at:7.3f} {self.kind}({told})"


def schedule(dice: Random, names: list[str], seconds: float) -> list[Fault]:
    """At least FAULTS_MIN a minute, in the order of time; none begins or lasts into a quiet period but its own."""
    made: list[Fault] = []
    draw = _Draw(dice, names)
    quiet = _quiet_periods(dice, seconds)
    for begin, end in _busy_periods(quiet, seconds):
        count = max(2, int((end - begin) * (0.45 + 0.35 * dice.random())))
        made += [draw.fault(begin + (end - begin) * dice.random(), end) for _ in range(count)]
    made += [draw.disaster(begin) for begin, _ in quiet]
    if dice.random() < 0.5:
        made += [draw.bad_network(begin, end) for begin, end in _busy_periods(quiet, seconds)]
    while len(made) < FAULTS_MIN:
        begin, end = dice.choice(_busy_periods(quiet, seconds))
        made.append(draw.fault(begin + (end - begin) * dice.random(), end))
    return sorted(made, key=lambda fault: fault.at)


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """A storm of a few kinds of faults, none of which loses data, under conditions that make them tell."""

    weights: dict[str, float]
    #: Most faults last so many seconds at most.
    lasts: float = LASTS
    #: In place of what the seed draws: fields of `Flow`, of `ShardConfig`. Snapshots come fast, since faults end with
    #: many nodes that lack much.
    flow: dict[str, int] = {}
    limits: dict[str, Any] = {}
    #: All the time: at most so large a part of all messages ("lost", "repeated", "overtaken").
    chances: dict[str, float] = {}
    #: All the time: each way takes so many times as long, at most.
    slow: float = 1.0
    #: A minority, as large as it may be, is down when faults end.
    dying: bool = False


def storm(dice: Random, names: list[str], seconds: float, weather: Weather) -> list[Fault]:
    """Without a rest, one a second, for as long as a run may take."""
    draw = _Draw(dice, names, weather.weights, weather.lasts)
    longest = 1.5 * seconds
    count = max(int(longest), FAULTS_MIN)
    made = [draw.fault(CALM_SECONDS + longest * dice.random(), 2 * longest) for _ in range(count)]
    if weather.chances:
        chances = {name: round(most * dice.random(), 4) for name, most in weather.chances.items()}
        made.append(Fault(CALM_SECONDS, "lossy", {"lasts": 2 * longest, **chances}))
    if weather.slow > 1.0:
        factor = round(weather.slow ** dice.random(), 1)
        made.append(Fault(CALM_SECONDS, "slow_network", {"lasts": 2 * longest, "factor": factor}))
    return sorted(made, key=lambda fault: fault.at)


def weather_of(dice: Random) -> str:
    """What a seed draws for itself."""
    return dice.choice(sorted(WEATHERS)) if dice.random() < STORMS else MIXED


def _quiet_periods(dice: Random, seconds: float) -> list[tuple[float, float]]:
    """None to two of them."""
    begins = [seconds * (0.2 + 0.2 * dice.random()), seconds * (0.6 + 0.2 * dice.random())]
    fitting = [(begin, begin + QUIET_SECONDS) for begin in begins if begin + QUIET_SECONDS < seconds - CALM_SECONDS]
    return [period for period in fitting if dice.random() < 0.75]


def _busy_periods(quiet: list[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    edges = [CALM_SECONDS, *(edge for period in quiet for edge in period), seconds - CALM_SECONDS]
    return [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if end - begin > 1.0]


class _Draw:
    """Draws faults of the kinds that this seed leans to, each with a weight of its own."""

    def __init__(
        self, dice: Random, names: list[str], weights: dict[str, float] | None = None, lasts: float = LASTS
    ) -> None:
        self._dice, self._names, self._lasts = dice, names, lasts
        #: Seconds from a fault to its latest end.
        self._left = lasts
        self._weights = {kind: weight * (0.2 + dice.random() * 2) for kind, weight in (weights or _WEIGHTS).items()}

    def fault(self, at: float, end: float) -> Fault:
        dice = self._dice
        kind = dice.choices(list(self._weights), list(self._weights.values()))[0]
        self._left = max(end - at, 0.05)
        lasts = round(min(0.05 + dice.random() ** 2 * self._lasts, self._left), 3)
        return Fault(round(at, 3), kind, getattr(self, f"_{kind}")(lasts))

    def bad_network(self, begin: float, end: float) -> Fault:
        """All the time, a little."""
        chances = {name: round(0.04 * self._dice.random() ** 2, 4) for name in ("lost", "repeated", "overtaken")}
        return Fault(round(begin + 0.01, 3), "lossy", {"lasts": round(end - begin, 3), **chances})

    def disaster(self, at: float) -> Fault:
        """Data is lost: the one fault of a quiet period."""
        kind = self._dice.choice(["wipe", "old_copy", "exchange"])
        age = {"age": round(SETTLE_SECONDS * self._dice.random(), 3)} if kind == "old_copy" else {}
        return Fault(round(at, 3), kind, {"node": self._one(), **age})

    def _one(self) -> str:
        """Often the leader, whose faults matter most."""
        return self._dice.choice(["leader", "leader", "follower", *self._names])

    def _some(self, least: int = 1) -> list[str]:
        return sorted(self._dice.sample(self._names, self._dice.randint(least, len(self._names))))

    def _down(self) -> float:
        return round(0.02 + self._dice.random() ** 3 * 4, 3)

    # Kinds: the arguments of each

    def _crash(self, lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "down": lasts, "power": self._dice.random() < 0.3}

    def _crash_at(self, lasts: float) -> dict[str, Any]:
        points = ["begin", "filled", "filled", "durable", "durable", "send", "install"]
        point = self._dice.choice(points)
        return {"node": self._one(), "point": point, "count": self._dice.randint(1, 6), "down": min(lasts, 2.0)}

    def _crash_many(self, lasts: float) -> dict[str, Any]:
        return {"nodes": self._some(), "down": lasts, "apart": round(self._dice.random() ** 3, 3)}

    def _restart(self, lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "down": min(lasts, 1.0)}

    def _pause(self, lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "lasts": lasts}

    def _cut(self, lasts: float) -> dict[str, Any]:
        """One way."""
        return {"source": self._one(), "target": self._dice.choice(self._names), "lasts": lasts, "keep": self._coin()}

    def _isolate(self, lasts: float) -> dict[str, Any]:
        way = self._dice.choice(["in", "out", "both"])
        return {"node": self._one(), "lasts": lasts, "keep": self._coin(), "way": way}

    def _partition(self, lasts: float) -> dict[str, Any]:
        return {"side": self._some()[: (len(self._names) + 1) // 2], "lasts": lasts, "keep": self._coin()}

    def _reset(self, _lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "other": self._dice.choice(self._names)}

    def _slow_link(self, lasts: float) -> dict[str, Any]:
        factor = round(10 ** (1 + 1.6 * self._dice.random()), 1)
        return {"source": self._one(), "target": self._dice.choice(self._names), "lasts": lasts, "factor": factor}

    def _late_answers(self, lasts: float) -> dict[str, Any]:
        """Half of the time, or more, is for another to lead, while answers from before still arrive."""
        late = 0.4 + 0.8 * self._dice.random()
        lasts = min(4 * late + lasts, self._left)
        return {"node": self._one(), "late": round(min(late, lasts / 4), 3), "lasts": round(lasts, 3)}

    def _lossy(self, lasts: float) -> dict[str, Any]:
        most = {"lost": 0.15, "repeated": 0.6, "overtaken": 0.4}
        chances = {name: round(chance * self._dice.random() ** 2, 4) for name, chance in most.items()}
        return {"lasts": lasts, **chances}

    def _slow_disk(self, lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "lasts": lasts, "factor": round(10 ** (0.5 + 1.5 * self._dice.random()), 1)}

    def _hang_disk(self, lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "seconds": min(lasts, 4.0)}

    def _fail_disk(self, lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "failure": self._dice.choice(["lost", "written"]), "down": lasts}

    def _full_disk(self, lasts: float) -> dict[str, Any]:
        """Below its reserve."""
        return {"node": self._one(), "lasts": lasts}

    def _step_clock(self, lasts: float) -> dict[str, Any]:
        seconds = (1 if self._coin() else -1) * 10 ** (3 * self._dice.random() - 1.5)
        return {"node": self._one(), "seconds": round(seconds, 3), "lasts": lasts}

    def _drift_clock(self, lasts: float) -> dict[str, Any]:
        return {"node": self._one(), "rate": round(1 + 0.2 * (self._dice.random() - 0.5), 4), "lasts": lasts}

    def _transfer(self, _lasts: float) -> dict[str, Any]:
        targets = [self._dice.choice([None, *self._names]) for _ in range(self._dice.choice([1, 1, 2, 4]))]
        return {"targets": targets, "apart": round(0.05 + self._dice.random(), 3)}

    def _grow(self, _lasts: float) -> dict[str, Any]:
        return {}

    def _shrink(self, _lasts: float) -> dict[str, Any]:
        return {"node": self._one()}

    def _swap(self, _lasts: float) -> dict[str, Any]:
        return {"node": self._one()}

    def _backup(self, _lasts: float) -> dict[str, Any]:
        return {"node": self._one()}

    def _inspect(self, _lasts: float) -> dict[str, Any]:
        return {"node": self._one()}

    def _upgrade(self, _lasts: float) -> dict[str, Any]:
        return {"apart": round(0.3 + 2 * self._dice.random(), 3)}

    def _digest(self, lasts: float) -> dict[str, Any]:
        count = self._dice.choice([1, 4, 8, 16])
        silent = round(min(lasts, 0.1 + 0.4 * self._dice.random()), 3) if count > 1 else 0.0
        return {"count": count, "apart": round(0.03 * self._dice.random(), 3), "silent": silent}

    def _crowd(self, lasts: float) -> dict[str, Any]:
        """Of operators; in half of the cases the leader is cut off right after."""
        changes = self._dice.sample(["grow", "shrink", "swap", "transfer"], self._dice.randint(1, 4))
        after = round(0.02 * self._dice.random() ** 2, 4)
        return {"changes": changes, "node": self._one(), "after": after, "lasts": lasts if self._coin() else 0.0}

    def _coin(self) -> bool:
        return self._dice.random() < 0.5


_WEIGHTS: Final = {
    "crash": 3.0,
    "crash_at": 4.0,
    "crash_many": 1.0,
    "restart": 1.0,
    "pause": 2.0,
    "cut": 2.5,
    "isolate": 2.5,
    "partition": 1.5,
    "reset": 1.5,
    "slow_link": 1.5,
    "late_answers": 1.0,
    "lossy": 2.0,
    "slow_disk": 1.0,
    "hang_disk": 1.0,
    "fail_disk": 0.7,
    "full_disk": 0.5,
    "step_clock": 0.7,
    "drift_clock": 0.7,
    "transfer": 1.5,
    "grow": 1.0,
    "shrink": 1.0,
    "swap": 1.0,
    "crowd": 1.0,
    "upgrade": 0.7,
    "backup": 0.3,
    "inspect": 0.3,
    "digest": 1.0,
}

WEATHERS: Final = {
    # Leaders come and go, and votes with them: few elections succeed at once, and the cluster is left as it stands.
    "elections": Weather(
        weights={"crash": 3.0, "crash_many": 1.0, "pause": 1.0, "isolate": 6.0, "partition": 2.0, "slow_disk": 2.0},
        limits={"chunk_bytes": 20_000},
        chances={"lost": 0.4, "repeated": 0.6, "overtaken": 0.3},
        dying=True,
    ),
    # Answers are on their way for so long that their sender or their receiver has gone on to another term.
    "stalls": Weather(
        weights={
            "transfer": 6.0,
            "late_answers": 6.0,
            "cut": 3.0,
            "isolate": 4.0,
            "slow_link": 3.0,
            "slow_disk": 2.0,
            "partition": 2.0,
        },
        lasts=1.5,
        limits={"chunk_bytes": 20_000},
        chances={"repeated": 0.2, "overtaken": 0.4},
        slow=100.0,
    ),
    # A leader is cut off with much in its log that others have in part, and is brought into line in small steps.
    "divergence": Weather(
        weights={"isolate": 6.0, "cut": 3.0, "partition": 2.0, "pause": 1.0, "crash": 1.0},
        flow={"append_bytes": 100},
        limits={
            "chunk_bytes": 20_000,
            "entry_bytes": 300,
            "uncommitted_bytes": 100_000,
            "waiting_commands": 200,
            "ride": 0.0,
        },
        slow=100.0,
    ),
}
