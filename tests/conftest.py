import os

# Before anything imports Triton: its kernels run in the interpreter, on CPU tensors.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings

import fast_interpreter

fast_interpreter.install()

# The same examples at every run: a failure in CI is a failure here.
settings.register_profile("onepass", derandomize=True, deadline=None, database=None)
settings.load_profile("onepass")


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, unless a test asks for more: on a busy machine every small parallel loop of torch waits for a core
    that is not free, which makes the suite some ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
