"""Runs in this process or in others. What source they run on is settled before the engine is imported.

A process runs one kind of source for good: with the mutation and the counters of its first run, or without.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator

from raftq.chaos.simulation import coverage, rewriting
from raftq.chaos.simulation.verdict import Options, Result

Run = Callable[[int, Options], Result]


def prepare(options: Options) -> None:
    """To be called once in a process, before anything of the cluster is imported."""
    sources = {}
    if options.mutation is not None:
        from raftq.chaos.simulation import mutations

        sources = mutations.transformers(options.mutation)
    trees = dict.fromkeys(coverage.MODULES, coverage.count) if options.coverage else {}
    if sources or trees:
        rewriting.install(sources, trees)


def run(seed: int, options: Options, write: Callable[[str], None] | None = None) -> Result:
    """After `prepare`."""
    from raftq.chaos.simulation import simulation

    coverage.begin()
    result = simulation.run(seed, options, write)
    if options.coverage:
        result.branches = coverage.counted()
    return result


def run_many(seeds: Iterable[int], options: Options, jobs: int) -> Iterator[Result]:
    """In `jobs` processes, in the order in which they end."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _prepare_child, (options,), maxtasksperchild=200) as pool:
        yield from pool.imap_unordered(_Task(options), seeds)


def _prepare_child(options: Options) -> None:
    """An interrupt is the parent's to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare(options)


class _Task:
    def __init__(self, options: Options) -> None:
        self._options = options

    def __call__(self, seed: int) -> Result:
        return run(seed, self._options)
