"""A whole cluster in one process and one thread, on simulated time: one seed replays one run exactly.

After TigerBeetle's VOPR and FoundationDB's simulation. The nodes are the real ones (`replication`, `storage`, LMDB on a
folder in memory); clock, event loop, network, disk latency and faults are ours. Data falls one way: `faults` makes the
schedule from the seed, `simulation` runs it over `node`s on `loop`, `network` and `disk`, checkers judge each step.
"""
