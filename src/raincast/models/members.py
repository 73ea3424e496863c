"""Correlated noise that orders the members of a distribution, and the levels of the ranks.

Ensemble copula coupling (Schefzik et al. 2013): at each pixel and lead time the members are quantiles of the
forecast distribution, in an order that noise decides. The noise is that of STEPS (Bowler et al. 2006): at each
wavelength it follows the autoregressive process of order 2 of the rain itself, begins at 0 at the newest frame,
has the spectrum of that frame, and moves with the rain. A wavelength's share of it is what it has lost by then.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from raincast.models.sprog import Bands, band_filters, coefficients, stationary

LEAST_CHANCE = 0.1
"""The share of the highest 1 / M of the distribution that no member reaches: so far out the tail is not known."""

SMOOTHING = 0.7
"""Standard deviation in pixels of the Gaussian that smooths the noise.

Without it members change places from one pixel to the next so often that each has ten times the power of the
observation at 2 to 4 pixels.
"""


def correlated_noise(
    newest: Float[Tensor, "h w"],
    bands: Bands,
    sample: int,
    far: Float[Tensor, "leads 2 h w"],
    generators: Sequence[torch.Generator],
) -> Iterator[Float[Tensor, "m h w"]]:
    """Yield at each lead time step M fields of unit variance, one per generator, advected by `far` pixels (y, x).

    `newest` is the logarithm of rain without NaN; `bands` are the statistics of the batch that `sample` is one of.
    At the edges the noise is periodic. It takes one Fourier transform per field and step. Each step overwrites the
    tensor of the one before.
    """
    H, W = newest.shape
    M = len(generators)
    amplitude, first, second = _by_wavenumber(newest, bands, sample)
    phi1, phi2 = coefficients(first, second)
    innovation = (1.0 - phi1 * first - phi2 * second).clamp_min(1e-8).sqrt()
    newer = torch.zeros(M, H, W // 2 + 1, dtype=torch.complex64, device=newest.device)
    older = torch.zeros_like(newer)
    rows = torch.arange(H, device=newest.device)[:, None]
    columns = torch.arange(W, device=newest.device)[None]
    fields = torch.empty(M, H, W, device=newest.device)
    for moved in far:
        # the nearest pixel: a mean of several has less variance
        y, x = rows - moved[0].round().long(), columns - moved[1].round().long()
        origin = ((y % H) * W + x % W).flatten()
        for member, generator in enumerate(generators):
            step = older[member].mul_(phi2).addcmul_(newer[member], phi1)
            step.addcmul_(_white(H, W, generator), innovation)
            field = torch.fft.irfft2(step * amplitude, s=(H, W))
            field *= field.square().mean().rsqrt().clamp_max(1e12)
            torch.index_select(field.flatten(), 0, origin, out=fields[member].view(-1))
        older, newer = newer, older
        yield fields


def _by_wavenumber(newest: Tensor, bands: Bands, sample: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the amplitude and the correlations at lags 1 and 2 of each coefficient of rfft2.

    The amplitude is that of `newest` after `SMOOTHING`. Correlations are means over the bands that the coefficient
    is in. A band weighs as much as its share of the coefficient and, since statistics are of the observed pixels
    alone, as its deviation there over that of its amplitude.
    """
    H, W = newest.shape
    amplitude = torch.fft.rfft2(newest - newest.mean()).abs()
    shares = band_filters(H, W, newest)
    # all columns but the first and, of an even width, the last stand for two
    twice = torch.full((W // 2 + 1,), 2.0, device=newest.device)
    twice[0] = 1.0
    if W % 2 == 0:
        twice[-1] = 1.0
    variance = ((shares * amplitude).square() * twice).sum((-2, -1)) / (H * W)
    weight = bands.deviation[sample] / variance.sqrt().clamp_min(1e-12)
    weights = shares * weight[:, None, None]
    total = weights.sum(0)
    first, second = (
        (weights * values[sample, :, None, None]).sum(0) / total.clamp_min(1e-12)
        for values in (bands.first, bands.second)
    )
    like = {"device": newest.device, "dtype": newest.dtype}
    square = torch.fft.fftfreq(H, **like)[:, None].square() + torch.fft.rfftfreq(W, **like)[None].square()
    smooth = torch.exp(-2.0 * (math.pi * SMOOTHING) ** 2 * square)
    return amplitude * total * smooth, *stationary(first, second)


def _white(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw the transform (rfft2) of white noise, of unit variance, (H, W // 2 + 1) complex."""
    like = {"device": generator.device, "dtype": torch.float32}
    drawn = torch.randn(height, width // 2 + 1, 2, generator=generator, **like)  # type: ignore[call-overload]
    white = torch.view_as_complex(drawn)
    # rows of these columns are conjugate pairs, as the field is real; elsewhere the mirror image is left out
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        own = white[:, column].clone()
        white[:, column] = (own + own.flip(0).roll(1).conj()) / math.sqrt(2.0)
    return white


def order(noise: Float[Tensor, "m n"]) -> Int64[Tensor, "m n"]:
    """Return the member of each rank at each pixel, the one with the smallest value first."""
    if noise.device.type != "cpu":
        return noise.argsort(dim=0)
    # numpy sorts short rows several times faster than torch
    return torch.from_numpy(np.argsort(noise.T.numpy(), axis=1)).T.contiguous()


def logits_of_ranks(num_members: int) -> Float[Tensor, " m"]:
    """Return the logit of reaching the rate of each rank: the lowest of 20 members is reached at 97.5 %."""
    chance = 1.0 - (torch.arange(num_members) + 0.5) / num_members
    return chance.logit()


def logit_of_highest(noise: Float[Tensor, "m n"]) -> Float[Tensor, " n"]:
    """Return the logit of reaching the rate of the highest member.

    Its level is not the middle of the highest 1 / M of the distribution: the tail beyond would never come, and
    members would differ too little. It lies where the largest of M values of noise lies in its own distribution,
    Φ(z)^M: high where the noise is extreme, and on the whole uniform within the highest 1 / M. `LEAST_CHANCE` is
    left out.
    """
    M = len(noise)
    below: Tensor = torch.special.ndtr(noise.amax(0)).pow(M).clamp_max(1.0 - LEAST_CHANCE)
    return ((1.0 - below) / M).logit()
