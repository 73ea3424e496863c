"""S-PROG in torch: scale decomposition of a rain field, lifetimes of its bands, and their recomposition.

Spectral prognosis (Seed 2003): the logarithm of rain is decomposed into bands of wavelengths, one octave each. In
Lagrangian coordinates each band follows an autoregressive process of order 2, whose coefficients come from the
lag-1 and lag-2 correlations of the last three frames. Small scales fade within minutes, large ones persist.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

NUM_BANDS = 8
"""Number of octaves: wavelengths of 2 to 4 pixels, 4 to 8, …; the last band has all longer ones and the mean."""

WIDTH = 0.5
"""Width of each band's filter, in octaves."""

LARGEST_CORRELATION = 0.9999
"""Upper bound of correlations: an autoregressive process with 1 or more would grow."""


FEWEST_PIXELS = 256
"""Fewest valid pixels from which correlations are computed."""


class SProg(NamedTuple):
    """S-PROG's forecast and its uncertainty.

    `field` (B, L, H, W) is in the input's unit. `correlation` (B, L, bands) is the correlation of each band at the
    lead time with the newest frame. `variance` (B, L) is the variance lost by then, in the input's unit squared,
    computed as if the bands did not overlap: about three quarters of the true value.
    """

    field: Tensor
    correlation: Tensor
    variance: Tensor


def sprog(
    frames: Float[Tensor, "b 3 h w"],
    valid: Float[Tensor, "b h w"],
    steps: Float[Tensor, "b leads"],
    *,
    step_minutes: Float[Tensor, " b"],
    pixel_km: Float[Tensor, " b"],
    longest: int,
) -> SProg:
    """Forecast with S-PROG from three frames advected to the time of the newest one, oldest first.

    `frames` are logarithms of rain without NaN; `valid` is 1 where all three were observed, else 0; `steps` are
    lead times in time steps, whole numbers from 1 to `longest`. Statistics come from the valid pixels; if there
    are fewer than `FEWEST_PIXELS`, the correlations are those of `usual_correlation`.
    """
    B, _, H, W = frames.shape
    of = statistics(frames, valid, step_minutes=step_minutes, pixel_km=pixel_km)
    a, b, correlation = propagate(of.first, of.second, steps, longest)
    # scale the older frame to the newest one's standard deviation, as bands are normalised one by one
    ratio = of.deviation / of.before.clamp_min(1e-6)
    b = b * ratio.clamp(0.5, 2.0)[:, None]
    weights = torch.cat([a, b], dim=2)
    fields = torch.cat([of.centred[:, 2], of.centred[:, 1]], dim=1).flatten(2)
    field = torch.bmm(weights, fields).view(B, steps.shape[1], H, W) + of.mean.sum(1)[:, None, None, None]
    variance = (of.deviation.square()[:, None] * (1.0 - correlation.square())).sum(2)
    return SProg(field, correlation, variance)


class Bands(NamedTuple):
    """The bands of three frames, and their statistics over the valid pixels.

    `centred` (B, 3, bands, H, W) are the bands minus their means; `mean` (B, bands) is that of the newest frame.
    `first` and `second` are correlations at lags 1 and 2, `deviation` and `before` the standard deviations of the
    newest and of the older frame, (B, bands) each.
    """

    centred: Tensor
    mean: Tensor
    first: Tensor
    second: Tensor
    deviation: Tensor
    before: Tensor


def statistics(
    frames: Float[Tensor, "b 3 h w"],
    valid: Float[Tensor, "b h w"],
    *,
    step_minutes: Float[Tensor, " b"],
    pixel_km: Float[Tensor, " b"],
) -> Bands:
    """Decompose three frames and compute the statistics that `sprog` needs; arguments as there."""
    # without the mean, whose rounding would outweigh the longest bands, almost empty on small grids
    whole = frames.mean((-2, -1), keepdim=True)
    bands = decompose(frames - whole)  # B, 3, K, H, W
    weight = valid[:, None, None]
    count = weight.sum((-2, -1)).clamp_min(1.0)
    mean = (bands * weight).sum((-2, -1)) / count
    centred = bands - mean[..., None, None]
    oldest, older, newest = (centred * weight).flatten(-2).unbind(1)

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
        return (a * b).sum(-1) / scale.clamp_min(1e-12)

    first = (correlate(newest, older) + correlate(older, oldest)) / 2.0
    second = correlate(newest, oldest)
    enough = count[:, 0] >= FEWEST_PIXELS
    first = torch.where(enough, first, usual_correlation(step_minutes, pixel_km))
    second = torch.where(enough, second, usual_correlation(2.0 * step_minutes, pixel_km))
    first, second = stationary(first, second)
    deviation = (newest.square().sum(-1) / count[:, 0]).sqrt()
    before = (older.square().sum(-1) / count[:, 0]).sqrt()
    newest_mean = torch.cat([mean[:, 2, :-1], mean[:, 2, -1:] + whole[:, 2, :, 0]], dim=1)
    return Bands(centred, newest_mean, first, second, deviation, before)


def usual_correlation(minutes: Float[Tensor, " b"], pixel_km: Float[Tensor, " b"]) -> Float[Tensor, "b bands"]:
    """Return the typical autocorrelation of each band after `minutes`.

    It is exp(−t/τ) with τ = 0.5 min · (wavelength / km)^1.25. A rough fit to Swiss, Dutch and European composites,
    used where the frames at hand have too little data.
    """
    octave = torch.arange(NUM_BANDS, device=pixel_km.device, dtype=pixel_km.dtype) + 1.5
    wavelength = pixel_km[:, None] * 2.0**octave
    return torch.exp(-minutes[:, None] / (0.5 * wavelength.pow(1.25)))


def decompose(frames: Float[Tensor, "b t h w"]) -> Float[Tensor, "b t bands h w"]:
    """Decompose `frames` into bands of wavelengths, fine to coarse, that add up to them."""
    H, W = frames.shape[-2:]
    filters = band_filters(H, W, frames)
    # the axis of bands before the transform: ONNX cannot add one to complex numbers
    spectrum = torch.fft.rfft2(frames[:, :, None])
    bands: Tensor = torch.fft.irfft2(spectrum * filters, s=(H, W))
    return bands


def band_filters(height: int, width: int, like: Tensor) -> Float[Tensor, "bands h w2"]:
    """Return the weight of each band at each wavenumber; the weights of a wavenumber add up to 1.

    They are Gaussian functions of the logarithm of the wavelength, as in pysteps (Pulkkinen et al. 2019).
    """
    wavenumber = torch.hypot(
        torch.fft.fftfreq(height, device=like.device, dtype=like.dtype)[:, None],
        torch.fft.rfftfreq(width, device=like.device, dtype=like.dtype)[None],
    )
    octave = -torch.log2(wavenumber.clamp_min(1e-9)) - 1.0  # 0 at a wavelength of 2 pixels
    centres = torch.arange(NUM_BANDS, device=like.device, dtype=like.dtype)[:, None, None] + 0.5
    # beyond the first and last centre the outermost bands take everything
    octave = octave.clamp(0.5, NUM_BANDS - 0.5)
    shares = torch.exp(-0.5 * ((octave - centres) / WIDTH).square())
    return shares / shares.sum(0, keepdim=True)


def stationary(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest lag-1 and lag-2 correlations that a stationary process of order 2 can have.

    The lower bound of lag 2 also keeps the process from oscillating (Pulkkinen et al. 2019).
    """
    first = first.clamp(0.0, LARGEST_CORRELATION)
    square = first.square()
    root = (1.0 - square).sqrt()
    # (3 r² − 2 + 2 (1 − r²)^1.5) / r², which would lose all digits of a small r
    least = square * (1.0 + 2.0 * root) / (1.0 + root).square()
    return first, torch.maximum(second, least).clamp_max(LARGEST_CORRELATION).minimum(first)


def coefficients(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return φ1 and φ2 of the process of order 2 with these correlations (Yule-Walker equations)."""
    gap = (1.0 - first.square()).clamp_min(1e-6)
    return first * (1.0 - second) / gap, (second - first.square()) / gap


def propagate(
    first: Float[Tensor, "b bands"],
    second: Float[Tensor, "b bands"],
    steps: Float[Tensor, "b leads"],
    longest: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of the newest and older frame and the correlation with the newest.

    Each is (B, leads, bands).

    x_n = φ1·x_{n−1} + φ2·x_{n−2} with x_0 the newest and x_{−1} the older frame.
    """
    phi1, phi2 = coefficients(first, second)
    ones, zeros = torch.ones_like(first), torch.zeros_like(first)
    # (weight of the newest, weight of the older, correlation), at steps −1 and 0
    older, newest = torch.stack([zeros, ones, first]), torch.stack([ones, zeros, ones])
    kept = []
    for _ in range(longest):
        older, newest = newest, phi1 * newest + phi2 * older
        kept.append(newest)
    table = torch.stack(kept, dim=2)  # 3, B, longest, bands
    index = (steps.long() - 1)[None, :, :, None].expand(3, -1, -1, first.shape[1])
    a, b, correlation = table.gather(2, index)
    return a, b, correlation.clamp(0.0, 1.0)
