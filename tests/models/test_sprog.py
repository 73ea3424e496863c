"""S-PROG in torch: bands, their lives, and pysteps' opinion."""

import numpy as np
import pytest
import torch

from raincast.models import sprog as module
from raincast.models.sprog import NUM_BANDS, decompose, propagate, sprog, stationary, usual_correlation


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian fields whose power falls with the wavenumber, as that of rain does."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(*shape, generator=generator))
    wavenumber = torch.hypot(torch.fft.fftfreq(shape[-2])[:, None], torch.fft.rfftfreq(shape[-1])[None])
    fields = torch.fft.irfft2(spectrum / wavenumber.clamp_min(1 / shape[-1]) ** 1.3, s=shape[-2:])
    return fields / fields.std((-2, -1), keepdim=True)


def run(frames: torch.Tensor, steps: list[float], valid: torch.Tensor | None = None) -> module.SProg:
    B = len(frames)
    return sprog(
        frames,
        torch.ones_like(frames[:, 0]) if valid is None else valid,
        torch.tensor([steps] * B),
        step_minutes=torch.full((B,), 5.0),
        pixel_km=torch.ones(B),
        longest=int(max(steps)),
    )


@pytest.mark.parametrize("shape", [(64, 64), (37, 50)])
def test_bands_add_up_to_the_field(shape: tuple[int, int]) -> None:
    fields = noise(2, 3, *shape)
    bands = decompose(fields)
    assert bands.shape == (2, 3, NUM_BANDS, *shape)
    torch.testing.assert_close(bands.sum(2), fields, rtol=0, atol=1e-5)
    means = (fields + 5.0).mean((-2, -1))
    torch.testing.assert_close(decompose(fields + 5.0).mean((-2, -1)).sum(2), means)


def test_a_wave_lies_in_the_band_of_its_octave() -> None:
    wave = torch.sin(2 * torch.pi * torch.arange(64) / 8 / 1.414)[None, None, None].expand(1, 1, 64, 64)
    power = decompose(wave - wave.mean())[0, 0].square().mean((-2, -1))
    assert power.argmax() == 2, "8 to 16 pixels"


def test_what_does_not_change_stays() -> None:
    frame = noise(1, 64, 64)
    forecast = run(torch.stack([frame, frame, frame], dim=1), [1.0, 12.0])
    torch.testing.assert_close(forecast.field[:, 0], frame, rtol=0, atol=0.02)
    assert float(forecast.variance[0, 1]) < 0.02


def test_unrelated_frames_leave_the_mean() -> None:
    frames = torch.stack(
        [torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(n)) for n in range(3)], 1
    )
    forecast = run(frames + 2.0, [1.0, 6.0])
    assert abs(float(forecast.field[0, 1].mean()) - 2.0) < 0.05
    assert float(forecast.field[0, 1].std()) < 0.1
    assert 0.6 < float(forecast.variance[0, 1]) < 1.0, "all of the bands' variance is lost; bands overlap"


def test_the_process_is_that_of_its_correlations() -> None:
    first, second = torch.tensor([[0.9, 0.5]]), torch.tensor([[0.8, 0.2]])
    a, b, correlation = propagate(first, second, torch.tensor([[1.0, 2.0, 5.0]]), 5)
    torch.testing.assert_close(correlation[0, :2], torch.stack([first[0], second[0]]))
    for band in range(2):
        one, two = float(first[0, band]), float(second[0, band])
        phi1, phi2 = one * (1 - two) / (1 - one**2), (two - one**2) / (1 - one**2)
        newest, older = [1.0, 0.0], [0.0, 1.0]
        for _ in range(5):
            newest, older = [phi1 * n + phi2 * o for n, o in zip(newest, older, strict=True)], newest
        assert float(a[0, 2, band]) == pytest.approx(newest[0], abs=1e-5)
        assert float(b[0, 2, band]) == pytest.approx(newest[1], abs=1e-5)


def test_correlations_that_no_process_has_are_moved_to_the_nearest() -> None:
    first, second = stationary(torch.tensor([[-0.2, 1.2, 0.9]]), torch.tensor([[0.5, 1.5, -0.9]]))
    assert first.tolist()[0] == pytest.approx([0.0, 0.9999, 0.9])
    assert (second <= first).all()
    assert float(second[0, 2]) > 2 * 0.9**2 - 1


def test_rounding_shows_neither_in_bands_longer_than_the_grid_nor_in_small_correlations() -> None:
    frames = noise(1, 3, 64, 64).cumsum(1) - 3.0
    of, exact = (
        module.statistics(
            fields,
            torch.ones_like(fields[:, 0]),
            step_minutes=fields.new_full((1,), 5.0),
            pixel_km=fields.new_ones(1),
        )
        for fields in (frames, frames.double())
    )
    assert exact.deviation[0, -1] < 1e-4, "the last band holds waves of 256 pixels and the mean"
    for name in ("first", "second", "mean"):
        torch.testing.assert_close(getattr(of, name).double(), getattr(exact, name), rtol=0, atol=1e-4)
    first = torch.tensor([1e-3, 0.011, 0.03, 0.5])
    _, least = stationary(first, first * 0.0 - 1.0)
    torch.testing.assert_close(least, stationary(first.double(), first.double() * 0.0 - 1.0)[1].float())
    square = first.double().square()  # the bound as Pulkkinen et al. write it
    bound = (3.0 * square - 2.0 + 2.0 * (1.0 - square).pow(1.5)) / square
    torch.testing.assert_close(least, bound.float(), rtol=1e-5, atol=1e-9)


def test_too_few_pixels_live_as_rain_usually_does() -> None:
    frames = noise(1, 3, 64, 64)
    valid = torch.zeros(1, 64, 64)
    valid[:, :10, :10] = 1
    usual = usual_correlation(torch.tensor([5.0]), torch.tensor([1.0]))
    torch.testing.assert_close(run(frames, [1.0], valid).correlation[:, 0], usual)
    assert (usual.diff(dim=1) > 0).all(), "large scales live longer"


def test_pysteps_agrees() -> None:
    """On a field whose bands fade, with the statistics of the whole frame, as pysteps takes them."""
    from pysteps.nowcasts.sprog import forecast

    fresh = noise(3, 128, 128, seed=3)
    frames = [fresh[0]]
    for new in fresh[1:]:
        frames.append(0.95 * frames[-1] + (1 - 0.95**2) ** 0.5 * new)
    decibels = 4.0 * torch.stack(frames) + 5.0
    ours = run(decibels[None], [1.0, 3.0, 6.0]).field[0].numpy()
    theirs = forecast(
        decibels.double().numpy(), np.zeros((2, 128, 128)), 6, precip_thr=-15.0, n_cascade_levels=7,
        probmatching_method=None,
    )[[0, 2, 5]]  # fmt: skip
    for mine, other, least in zip(ours, theirs, (0.99, 0.98, 0.96), strict=True):
        good = np.isfinite(other)
        assert np.corrcoef(mine[good], other[good])[0, 1] > least, "only the bands' widths differ"
        assert abs(mine[good].mean() - other[good].mean()) < 0.5
