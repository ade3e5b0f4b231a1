"""What a run of the tests uses of the processor. `make test-elsewhere` sets it as another machine would have it."""

from __future__ import annotations

import os
import zlib

# Of every test that does not choose its own. One by default: on a busy machine every small parallel loop of torch waits for
# a core that is not free, which makes the suite some ten times slower.
THREADS = int(os.environ.get("ONEPASS_TEST_THREADS", "1"))
# The instructions that torch and onepass take, for the processes that tests start with an environment of their own.
INSTRUCTIONS = {key: os.environ[key] for key in ("ATEN_CPU_CAPABILITY", "ONEPASS_ISA") if key in os.environ}
# Which part of the tests is run, and of how many.
PART = tuple(map(int, os.environ.get("ONEPASS_TEST_PART", "0/1").split("/")))


def in_part(nodeid: str) -> bool:
    return zlib.crc32(nodeid.encode()) % PART[1] == PART[0]
