"""Threads, instruction sets and part of a test run. `make test-elsewhere` sets them as on another machine."""

from __future__ import annotations

import os
import zlib

# For every test that does not set its own. One by default: on a busy machine every small parallel loop of torch waits for
# a free core, which makes the suite some ten times slower.
THREADS = int(os.environ.get("ONEPASS_TEST_THREADS", "1"))
# The instruction sets of torch and onepass, for the processes that tests start with their own environment.
INSTRUCTIONS = {key: os.environ[key] for key in ("ATEN_CPU_CAPABILITY", "ONEPASS_ISA") if key in os.environ}
# The part of the tests that runs, and the number of parts.
PART = tuple(map(int, os.environ.get("ONEPASS_TEST_PART", "0/1").split("/")))


def in_part(nodeid: str) -> bool:
    return zlib.crc32(nodeid.encode()) % PART[1] == PART[0]
