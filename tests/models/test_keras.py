"""An outside opinion: Keras's ConvLSTM2D, which has no peepholes and the same order of gates (i, f, c, o)."""

import os

# before Keras is imported: it takes its backend once
os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_TORCH_DEVICE"] = "cpu"

import keras
import numpy as np
import pytest
import torch
from torch import Tensor

from raincast.models import ConvLSTM

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")
both = pytest.mark.parametrize("fast", [True, False])


def test_keras_runs_on_pytorch():
    assert keras.backend.backend() == "torch"


def theirs(in_channels: int, filters: int, hw: tuple[int, int], *, random: bool = False, **kwargs):
    """Keras's layer as it starts, or with random weights and biases."""
    keras.utils.set_random_seed(3)
    made = keras.layers.ConvLSTM2D(
        filters,
        **({"kernel_size": 3} | kwargs),
        padding="same",
        data_format="channels_last",
        recurrent_activation="sigmoid",
        return_sequences=True,
        dtype="float32",
    )
    made.build((None, None, *hw, in_channels))
    if random:
        g = np.random.default_rng(4)
        made.set_weights([0.2 * g.standard_normal(w.shape, dtype=np.float32) for w in made.get_weights()])
    return made


def ours(their, *, fast: bool) -> ConvLSTM:
    """Our layer with the weights of theirs: kernels (k, k, in, 4·filters) → (4·filters, in, k, k)."""
    kernel, recurrent_kernel, bias = (torch.from_numpy(w) for w in their.get_weights())
    size, _, inputs, gates = kernel.shape
    made = ConvLSTM(inputs, gates // 4, input_kernel=size, state_kernel=size, peephole="none", fast=fast)
    weights = {"input_weight": to_ours(kernel), "state_weight": to_ours(recurrent_kernel), "bias": bias}
    made.load_state_dict(weights)
    return made


def to_ours(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1)


def to_keras(frames: Tensor) -> Tensor:
    """(B, T, C, H, W) → (B, T, H, W, C)."""
    return frames.permute(0, 1, 3, 4, 2)


def frames(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).requires_grad_()


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def assert_gradients_near(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest: gradients are sums over all pixels and steps."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@both
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_one_layer_gives_their_states_and_gradients(fast, kernel):
    their = theirs(3, 4, (7, 6), random=True, return_state=True, kernel_size=kernel)
    mine = ours(their, fast=fast)
    x = frames(2, 5, 3, 7, 6)
    out, (h, c) = mine(x)
    want, want_h, want_c = their(to_keras(x))
    assert_near(to_keras(out), want)
    assert_near(to_keras(torch.stack([h, c], 1)), torch.stack([want_h, want_c], 1))

    weights = [weight.value for weight in their.trainable_weights]
    found = torch.autograd.grad(out.square().sum() + c.sum(), [x, *mine.parameters()])
    expected = torch.autograd.grad(want.square().sum() + want_c.sum(), [x, *weights])
    assert_gradients_near(found[0], expected[0])
    named = dict(zip(dict(mine.named_parameters()), found[1:], strict=True))
    assert_gradients_near(named["input_weight"], to_ours(expected[1]))
    assert_gradients_near(named["state_weight"], to_ours(expected[2]))
    assert_gradients_near(named["bias"], expected[3])


@both
@pytest.mark.parametrize("random", [False, True])
def test_a_stack_of_32_and_16_maps_gives_their_outputs(fast, random):
    x = frames(1, 6, 1, 8, 8)
    out, want = x, to_keras(x)
    for inputs, filters in ((1, 32), (32, 16)):
        their = theirs(inputs, filters, (8, 8), random=random)
        out, want = ours(their, fast=fast)(out)[0], their(want)
    assert want.shape == (1, 6, 8, 8, 16)
    assert_near(to_keras(out), want)
    dx, want_dx = (torch.autograd.grad(y.sum(), x)[0] for y in (out, want))
    assert_gradients_near(dx, want_dx)


@both
def test_their_start_is_ours_with_forget_bias_1(fast):
    assert torch.equal(ours(theirs(2, 3, (4, 4)), fast=fast).bias, ConvLSTM(2, 3, forget_bias=1.0, fast=fast).bias)
