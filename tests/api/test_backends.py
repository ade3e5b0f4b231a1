"""Choice of the backend: by name, by device, and when one is unavailable."""

from __future__ import annotations

import importlib
import types
import warnings
from typing import Any

import pytest
import torch

import onepass
from compare import assert_same_state
from drive import parameters, train
from fresh_python import in_new_python
from onepass.backend import compiled, cpu
from records import BACKENDS, COMPILED, INSTALLED, RECORDS, each_optimizer

# The function of the same name hides the module.
backends = importlib.import_module("onepass.backend.registry")

ADVICE = {"cpu": "compiler", "torch": "torch 2.10"}


@pytest.mark.parametrize("backend", INSTALLED)
def test_usable(backend: str) -> None:
    assert onepass.backends()[backend] is None


def test_every_backend_has_a_reason_or_none() -> None:
    for name, reason in onepass.backends().items():
        assert name in BACKENDS or isinstance(reason, str)
        if reason is not None:
            assert "use" in reason or "install" in reason
            with pytest.raises(RuntimeError, match=f"backend='{name}' cannot be used") as caught:
                onepass.AdamW([torch.zeros(2)], backend=name)
            assert reason in str(caught.value)


@each_optimizer
def test_auto_is_the_compiled_backend(record: Any) -> None:
    """On CPU tensors, and without a warning."""
    opt = record.make(parameters(), backend="auto", **record.typical)
    other = record.make(parameters(), backend=COMPILED[0], **record.typical)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(opt, range(2))
    assert_same_state(opt, train(other, range(2)))
    assert [type(bound) for bound in opt._execution.backends] == [cpu.CpuBackend]


@pytest.mark.parametrize("wrong", ["gpu", "", None, 3, "CPU"])
def test_unknown_name(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'cpu', 'cuda', 'triton', 'reference'.*, got"):
        onepass.AdamW([torch.zeros(2)], backend=wrong)


def test_cpu_backend_refuses_other_devices() -> None:
    opt = onepass.AdamW([torch.zeros(2, device="meta")], backend=COMPILED[0])
    with pytest.raises(ValueError, match="backend='cpu' steps CPU tensors, got parameters on meta; use backend='auto'"):
        opt.step()


def test_auto_on_other_devices_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    with pytest.warns(UserWarning, match="no kernels for meta tensors"):
        assert backends.resolve("auto", torch.device("meta")) == "reference"
    assert backends.resolve("auto", torch.device("cpu")) == COMPILED[0]


def test_backend_refuses_checked_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """This internal error is reported as a bug, and no parameter is stepped."""
    monkeypatch.setattr(backends.ReferenceBackend, "ready", lambda *_: False)
    opt = onepass.SGD(parameters(), lr=0.1, backend="reference")
    with pytest.raises(RuntimeError, match="'reference' refuses tensors that passed every check; a bug"):
        train(opt, [0])
    for p, start in zip(opt.param_groups[0]["params"], parameters(), strict=True):
        assert torch.equal(p, start)


# ------------------------------------------------------------------ Triton


def _backends_with(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, interpreted: bool, installed: bool = True) -> None:
    """Simulates another machine, without the CUDA kernels."""
    triton = importlib.import_module("onepass.backend.triton.backend")
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setattr(importlib.import_module("onepass.backend.cuda"), "unavailable", lambda: "No nvcc; install it.")
    if not installed:
        monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)


def test_triton_without_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    _backends_with(monkeypatch, gpu=True, interpreted=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.resolve("auto", torch.device("cuda")) == "triton"
        assert backends.resolve("triton", torch.device("cuda")) == "triton"
    with pytest.raises(ValueError, match="backend='triton' steps CUDA and ROCm tensors"):
        backends.resolve("triton", torch.device("cpu"))


def test_cuda_kernels_take_precedence_over_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    _backends_with(monkeypatch, gpu=True, interpreted=False)
    monkeypatch.setattr(importlib.import_module("onepass.backend.cuda"), "unavailable", lambda: None)
    assert backends.resolve("auto", torch.device("cuda")) == "cuda"


def test_neither_cuda_kernels_nor_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    _backends_with(monkeypatch, gpu=True, interpreted=False, installed=False)
    with pytest.warns(UserWarning, match="reference backend. No nvcc; install it. Triton is not installed; install it"):
        assert backends.resolve("auto", torch.device("cuda")) == "reference"


def test_triton_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _backends_with(monkeypatch, gpu=False, interpreted=False)
    reason = onepass.backends()["triton"]
    assert reason is not None and "no GPU" in reason and "TRITON_INTERPRET=1" in reason


def test_an_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("triton"), "__version__", "3.4.1")
    reason = onepass.backends()["triton"]
    assert reason is not None and "3.4.1" in reason and "install 3.5" in reason


def test_triton_is_imported_lazily() -> None:
    output = in_new_python(
        """
        import torch, onepass
        p = torch.ones(3)
        p.grad = torch.ones(3)
        onepass.AdamW([p], backend="reference").step()
        print(any(name.startswith("onepass.triton_kernels") for name in sys.modules))
        """
    )
    assert output.split() == ["False"]


# ------------------------------------------------------------------ missing modules


def _step_and_collect_warnings() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            train(RECORDS["AdamP"].make(parameters()), range(2))
    return [str(w.message) for w in caught]


def test_torch_without_the_exchange_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_C", object())
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    reason = onepass.backends()["cpu"]
    assert reason is not None
    assert torch.__version__ in reason
    assert ADVICE["torch"] in reason
    (message,) = _step_and_collect_warnings()
    assert reason in message
    assert "reference" in message
    with pytest.raises(RuntimeError, match="no DLPack exchange table"):
        onepass.SGD(parameters(), backend="cpu")


def test_module_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_C", types.SimpleNamespace(version="0.0.1"))
    reason = onepass.backends()["cpu"]
    assert reason is not None
    for words in ("0.0.1", onepass.__version__, "reinstall"):
        assert words in reason


def test_without_the_compiled_module() -> None:
    """Import works, "auto" warns once and steps, "cpu" raises an error with advice."""
    output = in_new_python(
        """
        sys.modules["onepass._C"] = None
        import warnings, torch, onepass
        print(onepass.backends()["cpu"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                p = torch.ones(3)
                opt = onepass.AdamW([p], lr=0.5)
                for _ in range(2):
                    p.grad = torch.ones(3)
                    opt.step()
        print(len([w for w in caught if "onepass" in str(w.message)]), caught[0].message)
        print(p.tolist())
        try:
            onepass.AdamW([p], backend="cpu")
        except RuntimeError as error:
            print(error)
        """
    ).splitlines()
    reason = output[0]
    assert "onepass._C cannot be imported" in reason
    assert ADVICE["cpu"] in reason
    assert output[1] == f"1 onepass: stepping with the slow reference backend. {reason}"
    assert max(eval(output[2])) < 0.1
    assert output[3] == f"backend='cpu' cannot be used: {reason}"


def test_the_warning_points_at_the_step() -> None:
    """The warning has the line of the user's call, not a line of onepass or torch."""
    output = in_new_python(
        """
        sys.modules["onepass._C"] = None
        import warnings, torch, onepass
        p = torch.ones(3)
        p.grad = torch.ones(3)
        opt = onepass.AdamW([p])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt.step()
        print(caught[0].filename)
        """
    )
    assert output.strip() == "<string>"
