import gc
import os

ON_A_GPU = os.environ.get("ONEPASS_GPU_TESTS_ON") in ("cuda", "triton")
if not ON_A_GPU:
    # Before anything imports Triton: its kernels run in the interpreter, on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

if not ON_A_GPU:
    import fast_interpreter

    fast_interpreter.install()

try:
    from hypothesis import settings
except ImportError:  # a machine with a GPU, where tests/gpu alone is run
    pass
else:
    # The same examples at every run: a failure in CI is a failure here.
    settings.register_profile("onepass", derandomize=True, deadline=None, database=None)
    settings.load_profile("onepass")


def pytest_collection_finish() -> None:
    """16,000 tests stay until the end: the garbage collector need not look at them again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, unless a test asks for more: on a busy machine every small parallel loop of torch waits for a core
    that is not free, which makes the suite some ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from in_parallel import Scheduling

    return Scheduling(config, log)
