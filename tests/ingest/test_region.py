"""Cropped and coarsened archives: which pixels, where they lie, and that the mean stays."""

from pathlib import Path

import numpy as np
import pytest

from raincast import schema
from raincast.archive import Archive
from raincast.archive.rates import CODE_MM_H
from raincast.ingest import ingest
from raincast.ingest.readers.cf import CF
from raincast.ingest.region import Region

NAN = np.nan


def test_area_mean_is_that_of_the_observed_pixels() -> None:
    rain = np.array([[1, 2, NAN, 4], [3, 6, NAN, 0], [NAN, NAN, 8, NAN], [NAN, 5, NAN, NAN]], np.float32)
    # two of four pixels are enough, one is not
    np.testing.assert_array_equal(Region(coarsen=2).mean(rain), np.array([[3, 2], [NAN, NAN]], np.float32))


@pytest.mark.parametrize("coarsen", [1, 2, 3, 7])
def test_area_mean_against_loops(coarsen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raincast.archive.rates.BAND_PIXELS", 200)  # several bands
    rng = np.random.default_rng(0)
    rain = rng.gamma(0.3, 4.0, (42, 21)).astype(np.float32)
    rain[rng.random(rain.shape) < 0.4] = NAN
    rain = rain[:, : 21 // coarsen * coarsen]
    means = Region(coarsen=coarsen).mean(rain)
    for (row, column), mean in np.ndenumerate(means):
        block = rain[row * coarsen : (row + 1) * coarsen, column * coarsen : (column + 1) * coarsen]
        enough = np.isfinite(block).sum() * 2 >= block.size
        np.testing.assert_allclose(mean, np.nanmean(block, dtype=np.float64) if enough else NAN, rtol=1e-6)
    full = np.nan_to_num(rain)
    np.testing.assert_allclose(
        Region(coarsen=coarsen).mean(full).mean(dtype=float), full.mean(dtype=float), rtol=1e-6
    )


def test_grid_of_the_means_lies_at_their_middle() -> None:
    source = schema.mock_grid(12, 10)
    grid = Region(crop=(1, 12, 2, 9), coarsen=3).grid(source)
    assert grid.shape == (3, 2)  # two rows and a column are left over at the far ends
    np.testing.assert_array_equal(grid.y, source.y[[2, 5, 8]])
    np.testing.assert_array_equal(grid.x, source.x[[3, 6]])
    assert Region().grid(source) is source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 5, 3)}, r"grid\.crop=\(0, 5, 3\) must be \[y0,y1,x0,x1\]"),
        ({"crop": (5, 5, 0, 3)}, "must be"),
        ({"crop": (-4, 5, 0, 3)}, "must be"),
        ({"crop": (0, 5.0, 0, 3)}, "whole pixels"),
        ({"crop": 5}, "must be"),
        ({"coarsen": 0}, r"grid\.coarsen=0 must be a whole number from 1"),
        ({"coarsen": 1.5}, "must be a whole number"),
    ],
)
def test_wrong_regions_are_refused_before_a_file_is_touched(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ingest("nowhere/*.nc", "nowhere", CF(), **arguments)


def test_regions_beyond_the_images_are_refused(tmp_path: Path) -> None:
    schema.mock_archive(3).to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    with pytest.raises(ValueError, match=r"grid\.crop=\[0, 13, 0, 5\] reaches beyond the images of 12 × 10"):
        ingest(tmp_path / "a.nc", tmp_path / "out", CF(), crop=(0, 13, 0, 5))
    with pytest.raises(ValueError, match=r"grid\.coarsen=11 leaves no pixel of 12 × 10"):
        ingest(tmp_path / "a.nc", tmp_path / "out", CF(), coarsen=11)
    assert not (tmp_path / "out").exists()


def test_archive_of_a_region(tmp_path: Path) -> None:
    mock = schema.mock_archive(10)
    mock.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    ingest(tmp_path / "a.nc", tmp_path / "out", CF(), crop=(2, 10, 1, 9), coarsen=2)
    archive = Archive.open(tmp_path / "out")
    blocks = mock[schema.RAIN].values[:, 2:10, 1:9].astype(float).reshape(10, 4, 2, 4, 2)
    np.testing.assert_allclose(archive.read(0, 10), blocks.mean(axis=(2, 4)), atol=0.5 * CODE_MM_H + 1e-6)
    np.testing.assert_array_equal(archive.grid.y, mock.y.values[2:10].reshape(4, 2).mean(axis=1))
    with pytest.raises(ValueError, match=r"grid\.coarsen: 2 in the archive, 4 now"):
        ingest(tmp_path / "a.nc", tmp_path / "out", CF(), crop=(2, 10, 1, 9), coarsen=4)
