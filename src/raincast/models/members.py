"""Correlated noise that orders the members of a distribution, and their ranks.

Ensemble copula coupling (Schefzik et al. 2013): at each pixel and lead time the members are quantiles of the
forecast distribution, in an order that noise decides. The noise is that of STEPS (Bowler et al. 2006): in each
band it follows the autoregressive process of order 2 of the rain itself, begins at 0 at the newest frame, has the
spectrum of that frame, and moves with the rain. A band's share of it is what the band has lost by then.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from raincast.models.sprog import Bands, band_filters, coefficients


def correlated_noise(
    newest: Float[Tensor, "h w"],
    bands: Bands,
    sample: int,
    far: Float[Tensor, "leads 2 h w"],
    generator: torch.Generator,
) -> Iterator[Float[Tensor, "h w"]]:
    """A field of unit variance for each lead time step, moved by `far` pixels (y first) from the newest frame.

    `newest` is the logarithm of rain without NaN; `bands` are the statistics of the batch that `sample` is one of.
    At the edges the noise comes round, as a Fourier transform has it.
    """
    H, W = newest.shape
    amplitude = torch.fft.rfft2(newest - newest.mean()).abs()
    shaped = band_filters(H, W, newest) * amplitude
    # all columns but the first and, of an even width, the last stand for two
    twice = torch.full((W // 2 + 1,), 2.0, device=newest.device)
    twice[0] = 1.0
    if W % 2 == 0:
        twice[-1] = 1.0
    variance = (shaped.square() * twice).sum((-2, -1)) / (H * W)
    shaped = shaped / variance.sqrt().clamp_min(1e-12)[:, None, None]
    of_sample = (bands.first, bands.second, bands.deviation)
    first, second, deviation = (values[sample, :, None, None] for values in of_sample)
    phi1, phi2 = coefficients(first, second)
    innovation = (1.0 - phi1 * first - phi2 * second).clamp_min(1e-8).sqrt()
    older = newer = torch.zeros_like(shaped, dtype=torch.complex64)
    rows = torch.arange(H, device=newest.device)[:, None]
    columns = torch.arange(W, device=newest.device)[None]
    for moved in far:
        white = torch.randn(H, W, generator=generator, device=newest.device)
        older, newer = newer, phi1 * newer + phi2 * older + innovation * shaped * torch.fft.rfft2(white)
        field = torch.fft.irfft2((deviation * newer).sum(0), s=(H, W))
        field = field / field.square().mean().sqrt().clamp_min(1e-12)
        # the nearest pixel: a mean of several has less variance
        y, x = rows - moved[0].round().long(), columns - moved[1].round().long()
        yield field[y % H, x % W]


def ranks(noise: Float[Tensor, "m ..."]) -> Tensor:
    """How many of the M values at a pixel are smaller, (M, …) uint8; equal ones by their number."""
    found = torch.zeros(noise.shape, dtype=torch.uint8, device=noise.device)
    for other, values in enumerate(noise):
        found[:other] += noise[:other] > values
        found[other + 1 :] += noise[other + 1 :] >= values
    return found


def logits_of_ranks(num_members: int) -> Float[Tensor, " m"]:
    """The logit of reaching the rate of each rank, (M,): of 20 members the lowest is reached at 97.5 %."""
    chance = 1.0 - (torch.arange(num_members) + 0.5) / num_members
    return chance.logit()
