"""Spectra: pysteps', on squares; power is where the waves are; blur has a length."""

import numpy as np
import pytest
import torch

from raincast.metrics.spectrum import (
    SpectrumSums,
    effective_resolution,
    num_wavelengths,
    ratio,
    spectrum_sums,
    target_spectrum,
    wavelengths,
)


def fields(height: int = 32, width: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    pred, target = (torch.rand(2, 3, 1, height, width, generator=rng).mul(5).sub(2).clamp_min(0) for _ in range(2))
    return pred, target, torch.rand(2, 3, 1, height, width, generator=rng) > 0.1


@pytest.mark.parametrize("size", [32, 31])
def test_agrees_with_pysteps_with_missing_pixels(size):
    from pysteps.utils.spectral import rapsd

    pred, target, mask = fields(size, size)
    sums = spectrum_sums(pred, target.masked_fill(~mask, torch.nan), mask)
    assert sums.pred.shape == (2, num_wavelengths(size, size), 3)
    for own, field in ((sums.pred, pred), (sums.target, target)):
        for b in range(2):
            for t in range(3):
                theirs = rapsd(np.where(mask, field, 0.0)[b, t, 0], fft_method=np.fft)
                np.testing.assert_allclose(own[b, :, t], theirs, rtol=1e-6)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_a_wave_has_its_power_at_its_length(shape):
    """A wave of 8 km along either side of an oblong grid of 2 km pixels stands in the ring of 8 km."""
    for dim in (0, 1):
        along = torch.arange(shape[dim]).view(*(-1, 1) if dim == 0 else (1, -1))
        wave = (1 + torch.cos(2 * torch.pi * along / 4.0)).expand(1, 1, 1, *shape).float()
        sums = spectrum_sums(wave, wave, torch.ones_like(wave, dtype=torch.bool))
        power = target_spectrum(sums)[0, :, 0].clone()
        power[0] = 0  # the mean
        assert float(wavelengths(*shape, 2.0)[power.argmax()]) == 8.0
        assert power.max() > 1e6 * power.sort().values[-2]


def test_perfect_and_blurred_forecasts():
    _, target, mask = fields(64, 64)
    mask = torch.ones_like(mask)
    perfect = spectrum_sums(target, target, mask)
    assert (ratio(perfect) == 1).all()
    km = wavelengths(64, 64, 1.0)
    resolved = effective_resolution(ratio(perfect).transpose(1, 2), km)
    torch.testing.assert_close(resolved, torch.full_like(resolved, float(km[-1])))
    blurred = torch.nn.functional.avg_pool2d(target.flatten(0, 1), 5, 1, 2).view_as(target)
    smooth = spectrum_sums(blurred, target, mask)
    total = SpectrumSums(*(part.sum(0) for part in smooth))
    # a mean over 5 pixels keeps (sin 5x / (5 sin x))² of the power of a wave, half at about 11 pixels
    assert (effective_resolution(ratio(total).T, km) > 8).all() and (
        effective_resolution(ratio(total).T, km) < 16
    ).all()


def test_effective_resolution_by_hand():
    km = torch.tensor([torch.inf, 16.0, 8.0, 4.0, 2.0]).double()
    cases = {
        (9.0, 1.0, 1.0, 0.0, 1.0): 8 / 2**0.5,  # half way from 8 to 4 km, by the logarithm
        (0.0, 1.0, 0.9, 0.8, 0.7): 2.0,
        (1.0, 0.4, 1.0, 1.0, 1.0): np.nan,
        (1.0, 1.0, 1.0, np.nan, 1.0): np.nan,
    }
    found = effective_resolution(torch.tensor([*cases]).double(), km)
    np.testing.assert_allclose(found, [*cases.values()], rtol=1e-12)


def test_frames_without_pixels_do_not_count():
    pred, target, mask = fields()
    mask[0] = False
    sums = spectrum_sums(pred, target, mask)
    assert (sums.frames[0] == 0).all() and (sums.frames[1] == 1).all()
    assert (sums.pred[0] == 0).all() and target_spectrum(sums)[0].isnan().all()
    with pytest.raises(ValueError, match="pred has NaN"):
        spectrum_sums(pred * torch.nan, target, mask)
