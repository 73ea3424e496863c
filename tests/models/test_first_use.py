"""Kernels for a GPU, played by stand-ins on the CPU: they run only where they give what plain PyTorch gives."""

import logging
import re
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from raincast.models import ConvLSTM
from raincast.models.fast import gates
from raincast.models.fast.loading import FirstUse

WIDTH = 3


class StandIn:
    """Kernels that do as the plain functions, or as `wrong` says; `calls` are those with the layer's own tensors."""

    def __init__(self, name: str = "", wrong: Callable[..., None] | None = None) -> None:
        self.calls: list[str] = []
        self.tried: list[str] = []
        for known in ("forward", "regate", "recell", "backward"):
            setattr(self, known, self._kernel(known, wrong if known == name else None))

    def _kernel(self, name: str, wrong: Callable[..., None] | None) -> Callable[..., None]:
        plain = getattr(gates, name).__wrapped__

        def kernel(**tensors: Tensor | None) -> None:
            trial = tensors["cell"].shape[:3] == (2, 5, 7)
            (self.tried if trial else self.calls).append(name)
            plain(**tensors)
            if wrong is not None:
                wrong(**tensors)

        kernel.__name__ = name
        return kernel


@pytest.fixture
def put(monkeypatch) -> Callable[[StandIn], StandIn]:
    """Has the CPU taken for a GPU, with these kernels."""
    monkeypatch.delenv("RAINCAST_KERNELS", raising=False)
    monkeypatch.setattr(gates, "GPUS", ("cpu",))
    monkeypatch.setattr(gates, "on_gpus", FirstUse())

    def in_place(kernels: StandIn) -> StandIn:
        monkeypatch.setattr(gates, "gpu_kernels", lambda: kernels)
        return kernels

    return in_place


def trained(
    peephole: str = "channel", dtype: torch.dtype = torch.float32, recompute: bool = False
) -> list[Tensor]:
    """Outputs and gradients of a layer over four steps."""
    torch.manual_seed(0)
    size = (4, 3) if peephole == "pixel" else None
    layer = ConvLSTM(2, WIDTH, peephole=peephole, size=size, recompute=recompute).to(dtype)
    out, _ = layer(torch.randn(1, 4, 2, 4, 3).to(dtype))
    return [out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))]


def off(name: str) -> Callable[..., None]:
    """Adds a hundredth to a tensor that the kernel writes."""

    def wrong(**tensors: Tensor | None) -> None:
        tensors[name] += 0.01

    return wrong


def nan(**tensors: Tensor | None) -> None:
    tensors["cell"].fill_(torch.nan)


def breaks(**tensors: Tensor | None) -> None:
    raise RuntimeError("no kernel image is available for execution on the device")


@pytest.mark.parametrize("peephole", ["none", "channel", "pixel"])
@pytest.mark.parametrize("recompute", [False, True])
def test_kernels_that_agree_run(put, monkeypatch, caplog, peephole, recompute):
    used = put(StandIn())
    found = trained(peephole, recompute=recompute)
    again = "regate" if recompute else "recell"
    assert {name: used.calls.count(name) for name in ("forward", again, "backward")} == {
        "forward": 4,
        again: 4,
        "backward": 4,
    }
    monkeypatch.setenv("RAINCAST_KERNELS", "0")
    torch.testing.assert_close(found, trained(peephole, recompute=recompute))
    assert not caplog.records


def test_each_case_is_compared_once(put):
    used = put(StandIn())
    trained()
    first = list(used.tried)
    # forward: with and without a cell before; recell and backward too, backward with and without a step after it
    assert sorted(set(first)) == ["backward", "forward", "recell"] and len(first) < len(used.calls)
    trained()
    assert used.tried == first
    trained(peephole="none")
    assert len(used.tried) > len(first)
    first = list(used.tried)
    trained(dtype=torch.bfloat16)
    assert len(used.tried) > len(first)


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("forward", off("hidden"), "forward .*gave a hidden up to 0.01 off"),
        ("forward", off("a"), "forward .*gave a"),
        ("recell", nan, "recell .*gave a cell up to nan off"),
        ("backward", off("dpeephole"), "backward .*gave a dpeephole up to 0.0"),
        ("backward", off("dcell"), "backward .*gave a dcell"),
        ("backward", breaks, "backward .*failed .*no kernel image"),
    ],
)
def test_a_kernel_that_does_not_agree_is_told_once_and_left(put, monkeypatch, caplog, name, wrong, told):
    used = put(StandIn(name, wrong))
    with caplog.at_level(logging.WARNING, logger="raincast"):
        found, again = trained(), trained()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "plain PyTorch" in caplog.text
    assert re.search(told, caplog.text), caplog.text
    assert name not in used.calls
    monkeypatch.setenv("RAINCAST_KERNELS", "0")
    expected = trained()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, expected)


def test_float64_and_the_switch_take_plain_pytorch(put, monkeypatch):
    used = put(StandIn())
    trained(dtype=torch.float64)
    monkeypatch.setenv("RAINCAST_KERNELS", "0")
    trained()
    assert not used.calls and not used.tried


def test_who_watches_operations_sees_plain_pytorch(put):
    used = put(StandIn())
    with FakeTensorMode():
        assert ConvLSTM(2, WIDTH)(torch.empty(1, 2, 2, 4, 4))[0].shape == (1, 2, WIDTH, 4, 4)
    assert not used.calls and not used.tried


def test_random_numbers_go_on_as_they_would(put):
    put(StandIn())
    trained()
    found = torch.rand(3)
    trained()
    torch.testing.assert_close(torch.rand(3), found, rtol=0, atol=0)


def test_while_a_graph_is_captured_nothing_is_compared(put, monkeypatch):
    used = put(StandIn())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    trained()
    assert not used.calls and not used.tried
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    trained()
    assert used.calls and used.tried


def test_an_empty_batch(put):
    used = put(StandIn())
    assert ConvLSTM(2, WIDTH)(torch.zeros(0, 2, 2, 4, 4))[0].shape == (0, 2, WIDTH, 4, 4)
    assert not used.calls


def test_without_triton_it_says_so_once_and_is_right(monkeypatch, caplog):
    monkeypatch.delenv("RAINCAST_KERNELS", raising=False)
    monkeypatch.setattr(gates, "GPUS", ("cpu",))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "raincast.models.fast.gates_triton", raising=False)
    monkeypatch.delattr("raincast.models.fast.gates_triton", raising=False)
    gates.gpu_kernels.cache_clear()
    with caplog.at_level(logging.WARNING, logger="raincast"):
        found = [trained(), trained()]
    gates.gpu_kernels.cache_clear()
    assert len(caplog.records) == 1 and "need Triton" in caplog.text
    monkeypatch.setenv("RAINCAST_KERNELS", "0")
    for tensors in found:
        torch.testing.assert_close(tensors, trained())


def test_a_gpu_sums_the_gradients_of_peepholes_in_many_tables(monkeypatch):
    """Each 16 pixels or more, so that a small grid does not add up tables of nothing."""
    for device in ("cpu", "meta"):
        assert gates.num_tables(torch.empty(2, 64, 64, 3, device=device)) == torch.get_num_threads()
    monkeypatch.setattr(gates, "GPUS", ("meta",))
    found = [
        gates.num_tables(torch.empty(*shape, 3, device="meta")) for shape in ((1, 1, 1), (2, 8, 8), (4, 512, 512))
    ]
    assert found == [1, 9, 1024]
