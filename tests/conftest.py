import gc
import os
from pathlib import Path

ON_A_GPU = os.environ.get("ONEPASS_GPU_TESTS_ON") in ("cuda", "triton")
if not ON_A_GPU:
    # Before anything imports Triton: its kernels run in the interpreter, on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

import tiers  # noqa: E402
from processor import THREADS, in_part  # noqa: E402

if not ON_A_GPU:
    import fast_interpreter

    fast_interpreter.install()

try:
    from hypothesis import settings
except ImportError:  # a machine with a GPU, which runs only tests/gpu
    pass
else:
    # The same examples in every run, so that failures in CI are reproducible.
    settings.register_profile("onepass", derandomize=True, deadline=None, database=None)
    settings.load_profile("onepass")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "how many cases of a test are run, see tests/support/tiers.py (default: %(default)s)"
    parser.addoption("--tier", choices=tiers.TIERS, default="test", help=text)


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in tiers.MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return tiers.is_left_out(collection_path, config.getoption("tier")) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in tiers.chosen(items, config.getoption("tier")) if in_part(item.nodeid)]
    names = {item.nodeid for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in names])
    items[:] = kept
    for item in items:
        for marker in tiers.markers_of(item):
            item.add_marker(marker)


def pytest_collection_finish() -> None:
    """Excludes the 16,000 test items, which live until the end, from garbage collection."""
    gc.freeze()


@pytest.fixture(autouse=True)
def threads():
    """Sets the number of threads to that of processor.py; a test may change it."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from in_parallel import Scheduling

    return Scheduling(config, log)
