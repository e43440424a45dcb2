"""Found by the interpreter of a node when this folder is in PYTHONPATH. LMDB then syncs less than it must, so that a
power cut loses what was acknowledged: with LMDB_SYNCS=nothing not at all, with LMDB_SYNCS=data not the page that makes
a transaction count."""

from __future__ import annotations

import functools
import os

import lmdb

lmdb.open = functools.partial(lmdb.open, sync=os.environ["LMDB_SYNCS"] == "data", metasync=False)
