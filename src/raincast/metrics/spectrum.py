"""Radially averaged power spectra of rain, and the effective resolution: the scale below which it is blurred."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raincast.metrics.categorical import check_finite


class SpectrumSums(NamedTuple):
    """Sums over frames; they merge by addition."""

    frames: Int64[Tensor, "..."]
    """with at least one counted pixel"""
    pred: Float[Tensor, "..."]
    """power, float64, (mm/h)²"""
    target: Float[Tensor, "..."]


def num_wavelengths(height: int, width: int) -> int:
    """Return the number of rings: waves over the longer side, from 0 (the mean) to a wavelength of two pixels."""
    longer = max(height, width)
    return longer // 2 + longer % 2


def wavelengths(height: int, width: int, pixel_km: float) -> Float[Tensor, " w"]:
    """Return the wavelength of each ring in km, float64; infinite for the first."""
    longer = max(height, width)
    return pixel_km * longer / torch.arange(num_wavelengths(height, width), dtype=torch.float64)


def spectrum_sums(
    pred: Float[Tensor, "b t m h w"], target: Float[Tensor, "b t 1 h w"], mask: Bool[Tensor, "b t 1 h w"]
) -> SpectrumSums:
    """Radially averaged power of each frame, (B, W wavelengths, T): |FFT|² / pixels, mean over a ring of waves.

    Ring n has the waves that fit n times (± ½) into the longer side. Pixels where `mask` is False are 0 on both
    sides, so that the edge of the radar's coverage affects both spectra equally; NaN inside the mask is an error.
    On a square without missing pixels this is pysteps' `rapsd`. The spectrum of members is the mean of their
    powers, not the power of their mean.
    """
    check_finite("pred", pred, mask.expand_as(pred))
    check_finite("target", target, mask)
    B, T, _, H, W = target.shape
    ring, weight, waves = _rings(H, W, pred.device)
    powers = []
    for field in (pred, target):
        rings = torch.zeros(B, T, waves.numel(), dtype=torch.float64, device=pred.device)
        for t in range(T):  # a step at once: complex fields are large
            power = torch.zeros(B, H, W // 2 + 1, dtype=torch.float64, device=pred.device)
            for rain in field[:, t].unbind(1):
                power += torch.fft.rfft2(rain.double().masked_fill(~mask[:, t, 0], 0.0)).abs().square()
            power *= weight / (H * W * field.shape[2])
            rings[:, t].index_add_(1, ring, power.flatten(1))
        powers.append((rings / waves)[..., : num_wavelengths(H, W)].transpose(1, 2).contiguous())
    frames = mask.flatten(2).any(-1).long()[:, None].expand_as(powers[0])
    return SpectrumSums(frames.contiguous(), *powers)


def _rings(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ring of each coefficient of rfft2, its multiplicity in fft2, and the number of coefficients per
    ring."""
    longer = max(height, width)
    fy = torch.fft.fftfreq(height, device=device, dtype=torch.float64)
    fx = torch.fft.rfftfreq(width, device=device, dtype=torch.float64)
    ring = (longer * torch.hypot(fy[:, None], fx)).round().long()
    weight = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    weight[0] = 1.0  # no mirror image
    if width % 2 == 0:
        weight[-1] = 1.0
    waves = torch.bincount(ring.flatten(), weight.expand_as(ring).flatten())
    return ring.flatten(), weight, waves


def pred_spectrum(sums: SpectrumSums) -> Float[Tensor, "..."]:
    """Mean power of the forecast in (mm/h)²; NaN without frames."""
    return sums.pred / sums.frames


def target_spectrum(sums: SpectrumSums) -> Float[Tensor, "..."]:
    """Mean power of the observation in (mm/h)²; NaN without frames."""
    return sums.target / sums.frames


def ratio(sums: SpectrumSums) -> Float[Tensor, "..."]:
    """Power of the forecast divided by that of the observation: below 1 the forecast is too smooth, above 1 too
    rough."""
    return sums.pred / sums.target.masked_fill(sums.target == 0, torch.nan)


def effective_resolution(
    power_ratio: Float[Tensor, "... w"], wavelength_km: Float[Tensor, " w"], *, least: float = 0.5
) -> Float[Tensor, "..."]:
    """Return the wavelength in km at which, from long to short, the ratio of powers first falls below `least`.

    It is interpolated in the logarithm of the wavelength. If the ratio never falls, it is two pixels; NaN if the
    ratio is undefined, or too low at the longest wave already. The mean (infinite wavelength) is left out.
    """
    values, km = power_ratio[..., 1:], wavelength_km[1:].double().log()
    low = ~(values >= least)
    first = low.int().argmax(-1, keepdim=True)
    before = (first - 1).clamp_min(0)
    above, below = values.gather(-1, before), values.gather(-1, first)
    share = (above - least) / (above - below)
    at = km[before] + share * (km[first] - km[before])
    at = torch.where(low.any(-1, keepdim=True), at, km[-1])
    undefined = low[..., :1] | values.isnan().any(-1, keepdim=True)
    return at.exp().masked_fill(undefined, torch.nan)[..., 0]
