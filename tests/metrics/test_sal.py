"""SAL of rain areas that are shifted, doubled, widened; pysteps' own numbers."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("skimage")

from raincast.metrics import spatial
from raincast.metrics.spatial import SalSums, sal_sums

SIZE = 48


def cell(y: float, x: float, *, width: float = 3.0, peak: float = 8.0) -> torch.Tensor:
    """(1, 1, 1, SIZE, SIZE): one round cell in mm/h, sharply bounded."""
    grid = torch.arange(SIZE, dtype=torch.float32)
    distance = (grid[:, None] - y) ** 2 + (grid[None] - x) ** 2
    rain = peak * torch.exp(-distance / (2 * width**2))
    return torch.where(rain < 0.05, 0.0, rain)[None, None, None]


def sal(pred: torch.Tensor, target: torch.Tensor) -> tuple[float, float, float]:
    sums = sal_sums(pred, target, torch.ones_like(pred, dtype=torch.bool))
    assert sums.frames.item() == 1
    return tuple(float(part(sums)) for part in (spatial.structure, spatial.amplitude, spatial.location))


def test_a_perfect_forecast_has_no_error() -> None:
    assert sal(cell(20, 20), cell(20, 20)) == pytest.approx((0, 0, 0), abs=1e-12)


def test_twice_the_rain_is_an_error_of_amplitude_alone() -> None:
    # A = (2D − D) / (0.5 · 3D); the objects' volumes are scaled by their peaks
    assert sal(2 * cell(20, 20), cell(20, 20)) == pytest.approx((0, 2 / 3, 0), abs=1e-12)


def test_a_shift_is_an_error_of_location_alone() -> None:
    found = sal(cell(20, 32), cell(20, 20))
    # 12 pixels over the diagonal; one object each, so nothing about their spread
    assert found == pytest.approx((0, 0, 12 / math.hypot(SIZE, SIZE)), abs=1e-3)


def test_wide_and_flat_is_structure_above_zero_and_narrow_below() -> None:
    assert sal(cell(24, 24, width=6), cell(24, 24))[0] > 0.5
    assert sal(cell(24, 24, width=2), cell(24, 24))[0] < -0.5


def test_it_is_pysteps_number_frame_by_frame_and_masked_pixels_are_dry() -> None:
    from pysteps.verification.salscores import sal as theirs

    rng = np.random.default_rng(0)
    pred = torch.cat([cell(*rng.uniform(12, 36, 2), width=rng.uniform(2, 5)) for _ in range(4)])
    pred = pred + torch.cat([cell(*rng.uniform(12, 36, 2)) for _ in range(4)])
    target = torch.cat([cell(*rng.uniform(12, 36, 2), width=rng.uniform(2, 5)) for _ in range(4)])
    mask = torch.ones_like(pred, dtype=torch.bool)
    mask[..., :14, :] = False
    spoilt = torch.where(mask, target, torch.nan)
    sums = sal_sums(torch.where(mask, pred, 99.0), spoilt, mask)
    for row in range(4):
        fields = [torch.where(mask, rain, 0.0)[row, 0, 0].double().numpy() for rain in (pred, target)]
        expected = theirs(*fields)
        found = [float(part[row, 0]) for part in sums[1:4]]
        assert found == pytest.approx(expected, abs=1e-6)
        assert float(sums.structure_size[row, 0]) == pytest.approx(abs(expected[0]), abs=1e-6)


def test_without_rain_on_a_side_there_is_no_number() -> None:
    dry, wet = torch.zeros_like(cell(9, 9)), cell(20, 20)
    for pred, target in ((dry, wet), (wet, dry), (dry, dry)):
        sums = sal_sums(pred, target, torch.ones_like(pred, dtype=torch.bool))
        assert sums.frames.item() == 0 and math.isnan(float(spatial.location(sums)))


def test_sums_of_two_pieces_are_those_of_the_whole() -> None:
    pred, target = torch.cat([cell(20, 20), cell(10, 30)]), torch.cat([cell(22, 25), cell(14, 30, width=5)])
    mask = torch.ones_like(pred, dtype=torch.bool)
    whole = sal_sums(pred, target, mask)
    parts = [sal_sums(pred[row : row + 1], target[row : row + 1], mask[row : row + 1]) for row in (0, 1)]
    assert all(
        torch.equal(torch.cat(part), all_) for part, all_ in zip(zip(*parts, strict=True), whole, strict=True)
    )
    assert isinstance(whole, SalSums)


def test_without_scikit_image_the_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from raincast.evaluation import Metrics

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"metrics\.sal=true needs scikit-image .*raincast\[linda\]"):
        Metrics((1.0,), sal=True)
