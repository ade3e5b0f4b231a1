"""How pytest-xdist distributes the tests: one by one to any free process, but those of a file with a fixture of scope "module",
which is a long build or run, all to one. These come first.

xdist's own --dist loadgroup is for this, but xdist 3.8.0 does not detect the groups under pytest 9.
"""

from __future__ import annotations

import functools
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController


@functools.cache
def has_module_fixture(file: Path) -> bool:
    return 'scope="module"' in file.read_text()


class Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if has_module_fixture(self.config.rootpath / file) else nodeid

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """Drops finished tests. xdist would iterate over all of them after every test, while the processes wait."""
        super().mark_test_complete(node, item_index, duration)
        units = self.assigned_work[node]
        done = self._split_scope(self.registered_collections[node][item_index])
        if all(units[done].values()):
            del units[done]
