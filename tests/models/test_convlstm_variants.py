"""What a ConvLSTM may have beside its equations: norms, zoneout, recurrent dropout, peepholes per pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raincast.models import ConvLSTM

F64 = torch.float64


def layer(in_channels: int = 2, hidden: int = 3, **kwargs) -> ConvLSTM:
    """A layer with every parameter away from its start; the same numbers for the same names and shapes."""
    made = ConvLSTM(in_channels, hidden, **kwargs).double()
    with torch.no_grad():
        for name, parameter in sorted(made.named_parameters()):
            g = torch.Generator().manual_seed(len(name))
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=F64) * 0.4)
    return made


def random_inputs(B: int, T: int, hidden: int, H: int, W: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(B, T, 2, H, W, dtype=F64, generator=g)
    h, c = (torch.randn(B, hidden, H, W, dtype=F64, generator=g) for _ in range(2))
    return x, (h, c)


# --- norms ----------------------------------------------------------------------------------------------------------


def normalised(values: Tensor) -> Tensor:
    """(group, H, W) with mean 0 and variance 1; the variance is that of all values, 1e-5 keeps it from 0."""
    mean = values.sum() / values.numel()
    variance = ((values - mean) ** 2).sum() / values.numel()
    return (values - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize(("norm", "size"), [("layer", 6), ("group", 6), ("group", 3), ("group", 2), ("group", 1)])
def test_norm_equals_one_by_hand(norm, size):
    """The convolutions' sum is normalised by gate and group, then scaled; biases and peepholes come after."""
    cell = layer(hidden=6, norm=norm, **({"norm_group": size} if norm == "group" else {}))
    x, (h, c) = random_inputs(2, 3, 6, 4, 5)
    got, _ = cell(x, (h, c))
    scale, bias = cell.norm.weight.view(-1, 1, 1), cell.bias.view(-1, 1, 1)
    for t in range(3):
        total = F.conv2d(x[:, t], cell.input_weight, padding=1) + F.conv2d(h, cell.state_weight, padding=1)
        by_hand = [
            torch.cat([normalised(group) for group in sample.split(size)]) * scale + bias for sample in total
        ]
        i, f, z, o = torch.stack(by_hand).chunk(4, dim=1)
        i, f = i + cell.peephole[0] * c, f + cell.peephole[1] * c
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = (o + cell.peephole[2] * c).sigmoid() * c.tanh()
        torch.testing.assert_close(got[:, t], h)


def test_norm_has_a_scale_and_no_second_shift():
    names = {name for name, _ in ConvLSTM(2, 4, norm="layer").named_parameters()}
    assert names == {"input_weight", "state_weight", "bias", "peephole", "norm.weight"}
    assert ConvLSTM(2, 4, norm="layer").norm.weight.shape == (16,)


def test_norm_ignores_the_scale_of_the_kernels():
    cell, (x, state) = layer(norm="layer"), random_inputs(1, 1, 3, 6, 6)
    want = cell(x, state)[0]
    with torch.no_grad():
        cell.input_weight.mul_(1e3)
        cell.state_weight.mul_(1e3)
    torch.testing.assert_close(cell(x, state)[0], want, rtol=1e-4, atol=1e-4)


# --- zoneout --------------------------------------------------------------------------------------------------------


def one_step(rate: float, *, training: bool, peephole: str = "none"):
    """New hidden and cell state with zoneout; without it; the old ones; and the output gate."""
    x, (h, c) = random_inputs(4, 1, 3, 20, 25)
    kept = layer(zoneout=rate, peephole=peephole).train(training)(x, (h, c))[1]
    plain = layer(peephole=peephole)(x, (h, c))[1]
    return kept, plain, (h, c), plain[0] / plain[1].tanh()


def test_zoneout_in_training_keeps_old_values_at_its_rate():
    torch.manual_seed(3)
    (hidden, cell), (_, new_cell), (old_hidden, old_cell), gate = one_step(0.3, training=True)
    of_cell = cell == old_cell
    torch.testing.assert_close(cell[~of_cell], new_cell[~of_cell])
    # the hidden state is made of the cell as it is now
    of_hidden = hidden == old_hidden
    torch.testing.assert_close(hidden[~of_hidden], (gate * cell.tanh())[~of_hidden])
    # 6000 draws: 0.3 ± 4·√(0.21 / 6000)
    for share in (of_cell.double().mean(), of_hidden.double().mean(), (of_cell & of_hidden).double().mean() / 0.3):
        assert abs(share - 0.3) < 0.05
    again = one_step(0.3, training=True)[0][1]
    assert not torch.equal(again == old_cell, of_cell)


def test_zoneout_in_evaluation_takes_the_mean():
    (hidden, cell), (_, new_cell), (old_hidden, old_cell), gate = one_step(0.3, training=False)
    torch.testing.assert_close(cell, 0.7 * new_cell + 0.3 * old_cell)
    torch.testing.assert_close(hidden, 0.7 * gate * cell.tanh() + 0.3 * old_hidden)


def test_zoneout_near_one_keeps_the_state():
    x, state = random_inputs(1, 4, 3, 5, 5)
    hidden, cell = layer(zoneout=1 - 1e-12).eval()(x, state)[1]
    torch.testing.assert_close((hidden, cell), state)


# --- recurrent dropout ----------------------------------------------------------------------------------------------


def test_recurrent_dropout_drops_what_is_written_and_keeps_its_mean():
    torch.manual_seed(4)
    x, _ = random_inputs(4, 1, 3, 20, 25)
    dropped = layer(recurrent_dropout=0.25).train()(x)[1][1]
    written = layer()(x)[1][1]  # from a cell of zeros the first step only writes
    gone = dropped == 0
    torch.testing.assert_close(dropped[~gone], written[~gone] / 0.75)
    assert abs(gone.double().mean() - 0.25) < 0.05


def test_recurrent_dropout_leaves_the_memory_alone():
    x, (h, c) = random_inputs(2, 1, 3, 8, 8)
    new = layer(recurrent_dropout=1 - 1e-9, peephole="none").train()(x, (h, c))[1][1]
    plain = layer(peephole="none")
    with torch.no_grad():
        plain.bias.chunk(4)[0].fill_(-1e4)  # nothing is written
    torch.testing.assert_close(new, plain(x, (h, c))[1][1])


def test_recurrent_dropout_ends_with_training():
    x, state = random_inputs(2, 3, 3, 6, 6)
    cell, plain = layer(recurrent_dropout=0.5), layer()
    torch.testing.assert_close(cell.eval()(x, state), plain(x, state))
    assert not torch.allclose(cell.train()(x, state)[0], plain(x, state)[0])


@pytest.mark.parametrize("variant", [{"zoneout": 0.0}, {"recurrent_dropout": 0.0}, {"norm": "none"}])
def test_off_is_the_plain_layer(variant):
    x, state = random_inputs(2, 3, 3, 6, 6)
    torch.testing.assert_close(layer(**variant).train()(x, state), layer()(x, state), rtol=0, atol=0)


# --- peepholes per pixel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_peepholes_per_pixel_that_are_constant_are_those_per_channel(fast):
    channel, pixel = layer(fast=fast), layer(peephole="pixel", size=(4, 6), fast=fast)
    with torch.no_grad():
        pixel.peephole.copy_(channel.peephole.expand(-1, -1, 4, 6))
    x, state = random_inputs(2, 3, 3, 4, 6)
    torch.testing.assert_close(pixel(x, state), channel(x, state))
    for cell in (channel, pixel):
        cell(x, state)[0].square().sum().backward()
    torch.testing.assert_close(pixel.peephole.grad.sum((2, 3), keepdim=True), channel.peephole.grad)


@pytest.mark.parametrize("fast", [True, False])
def test_a_peephole_of_one_pixel_acts_there(fast):
    cell = layer(peephole="pixel", size=(5, 5), state_kernel=1, input_kernel=1, fast=fast)
    x, state = random_inputs(1, 2, 3, 5, 5)
    before = cell(x, state)[0]
    with torch.no_grad():
        cell.peephole[:, :, 1, 3] += 1
    changed = (cell(x, state)[0] != before).flatten(0, 2).any(0)
    assert changed.nonzero().tolist() == [[1, 3]]
