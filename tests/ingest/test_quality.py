"""Specks and static clutter: against brute force, and never by a pixel that nobody observed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from checking import check_encoded

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.quality import Cleaned, Clutter, Quality, drop_specks
from raincast.ingest.readers.cf import CF
from raincast.schema import RAIN, mock_archive

NAN = np.nan


def without_specks(rain: np.ndarray, num_pixels: int) -> np.ndarray:
    """By flood fill, pixel after pixel."""
    height, width = rain.shape
    left, result = {(int(r), int(c)) for r, c in np.argwhere(rain > 0)}, rain.copy()
    while left:
        area, front, whole = set(), [left.pop()], True
        while front:
            row, column = front.pop()
            area.add((row, column))
            for r in (row - 1, row, row + 1):
                for c in (column - 1, column, column + 1):
                    inside = 0 <= r < height and 0 <= c < width
                    if not inside or np.isnan(rain[r, c]):
                        whole = False
                    elif (r, c) in left:
                        left.remove((r, c))
                        front.append((r, c))
        if whole and len(area) < num_pixels:
            for place in area:
                result[place] = 0
    return result


@pytest.mark.parametrize("num_pixels", [2, 3, 5, 20])
@pytest.mark.parametrize("seed", range(5))
def test_specks_against_brute_force(num_pixels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rain = np.where(rng.random((23, 31)) < 0.15, rng.gamma(1, 2, (23, 31)), 0).astype(np.float32)
    rain[rng.random(rain.shape) < 0.01] = NAN
    expected = without_specks(rain, num_pixels)
    assert (expected != rain)[~np.isnan(rain)].any()
    drop_specks(rain, num_pixels)
    np.testing.assert_array_equal(rain, expected)


def test_areas_that_are_not_seen_whole_stay() -> None:
    rain = np.zeros((7, 9), np.float32)
    rain[0, 4] = rain[2, 2] = rain[4, 6] = 1  # at the edge, alone, beside a missing pixel
    rain[5, 7] = NAN
    clean, _ = Quality(speck_pixels=2).clean(rain)
    assert [tuple(place) for place in np.argwhere(clean > 0)] == [(0, 4), (4, 6)]
    assert np.isnan(clean[5, 7]) and np.isnan(clean).sum() == 1
    for nothing in (np.zeros((3, 4)), np.full((3, 4), NAN), np.ones((1, 1))):
        kept = Quality(speck_pixels=9).clean(nothing.astype(np.float32))[0]
        np.testing.assert_array_equal(kept, nothing)


def test_specks_are_of_what_min_rate_leaves() -> None:
    rain = np.zeros((5, 5), np.float32)
    rain[2, 1:4] = [0.05, 2, 0.05]
    assert Quality(speck_pixels=3).clean(rain)[0].max() == 2
    assert Quality(min_rate=0.1, speck_pixels=3).clean(rain)[0].max() == 0


def write_maps(path: Path, wet_share: np.ndarray, grid: schema.Grid | None = None) -> Path:
    grid = grid or schema.mock_grid(*wet_share.shape)
    values = wet_share.astype(np.float32)
    xr.Dataset(
        {schema.WET_SHARE: (("y", "x"), values, {"grid_mapping": "crs"})}, coords=grid.to_coords()
    ).to_netcdf(path, engine="netcdf4")
    return path


def test_clutter_is_missing_in_every_frame_and_kept_to(tmp_path: Path) -> None:
    mock = schema.mock_archive(10)
    mock.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    schema.mock_archive(10, start="2026-01-01T00:50").to_netcdf(tmp_path / "b.nc", engine="netcdf4")
    share = np.zeros((12, 10))
    share[5, 5], share[7, 3], share[0, 0] = 0.95, 0.9, NAN  # more than, not as much as; never observed
    maps = write_maps(tmp_path / "maps.nc", share)
    ingest(tmp_path / "a.nc", tmp_path / "out", CF(), clutter_maps=maps)
    rain = Archive.open(tmp_path / "out").read(0, 10)
    expected = np.isnan(mock[schema.RAIN].values)
    assert not expected[:, 5, 5].any()
    expected[:, 5, 5] = True
    np.testing.assert_array_equal(np.isnan(rain), expected)
    # the same choice goes on, from wherever the file is; another does not, nor none
    moved = maps.rename(tmp_path / "moved.nc")
    ingest(tmp_path / "b.nc", tmp_path / "out", CF(), clutter_maps=moved)
    assert np.isnan(Archive.open(tmp_path / "out").read(0, 20)[:, 5, 5]).all()
    share[7, 3] = 1
    other = write_maps(tmp_path / "other.nc", share)
    for arguments, words in (
        ({}, r"clutter_share: 0\.9 in the archive, null now"),
        ({"clutter_maps": other}, r'clutter_pixels: "\w+" in the archive, "\w+" now'),
        ({"clutter_maps": moved, "speck_pixels": 5}, "speck_pixels: 0 in the archive, 5 now"),
    ):
        with pytest.raises(ValueError, match=words):
            ingest(tmp_path / "b.nc", tmp_path / "out", CF(), **arguments)


def test_clutter_is_of_the_services_pixels(tmp_path: Path) -> None:
    """A coarse pixel is the mean of its other pixels; a crop takes the mask's crop."""
    mock = schema.mock_archive(6)
    mock.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    share = np.zeros((12, 10))
    share[4, 5] = 1
    maps = write_maps(tmp_path / "maps.nc", share)
    ingest(tmp_path / "a.nc", tmp_path / "out", CF(), clutter_maps=maps, crop=(2, 12, 1, 9), coarsen=2)
    pixels = mock[schema.RAIN].values.astype(float)
    pixels[:, 4, 5] = NAN
    means = np.nanmean(pixels[:, 4:6, 5:7], axis=(1, 2))
    np.testing.assert_allclose(Archive.open(tmp_path / "out").read(0, 6)[:, 1, 2], means, atol=0.006)
    small = write_maps(tmp_path / "small.nc", np.zeros((6, 5)))
    with pytest.raises(ValueError, match=r"clutter_maps=.*small\.nc is on a grid of \(6, 5\).*grid\.crop=null"):
        ingest(tmp_path / "a.nc", tmp_path / "new", CF(), clutter_maps=small)
    assert not list((tmp_path / "new").glob("*.nc"))


def test_much_clutter_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    maps = write_maps(tmp_path / "maps.nc", np.linspace(0, 1, 120).reshape(12, 10))
    Clutter(maps, 0.5).check(schema.mock_grid())
    assert "takes 50 % of the pixels for clutter" in caplog.text


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    maps = write_maps(tmp_path / "maps.nc", np.zeros((3, 4)))
    (tmp_path / "text.nc").write_text("no netCDF")
    schema.mock_archive(3).to_netcdf(tmp_path / "rain.nc", engine="netcdf4")
    for make, words in (
        (lambda: Quality(speck_pixels=-1), r"speck_pixels=-1 must be a whole number from 0"),
        (lambda: Quality(speck_pixels=1.5), r"speck_pixels=1\.5 must"),  # type: ignore[arg-type]
        (lambda: Clutter(maps, 1.0), r"clutter_share=1\.0 must be between 0 and 1"),
        (lambda: Clutter(tmp_path / "text.nc"), r"text\.nc has no wet_share.*inspect=ARCHIVE"),
        (lambda: Clutter(tmp_path / "rain.nc"), r"rain\.nc has no wet_share"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(FileNotFoundError, match=r"no file clutter_maps=.*nowhere\.nc"):
        Clutter(tmp_path / "nowhere.nc")


def test_a_cleaned_reader_gives_what_an_archive_would(tmp_path: Path) -> None:
    """Of a file with hail, a negative rate and a speck, straight from the file and by way of an archive."""
    mock = mock_archive(4)
    mock[RAIN][1, 5, 5], mock[RAIN][2, 6, 6] = 4000.0, -3.0
    mock[RAIN][3, 4:9, 4:9] = 0.0
    mock[RAIN][3, 6, 6] = 2.0
    mock.drop_vars("missing_times").to_netcdf(tmp_path / "a.nc")
    limits: dict[str, Any] = {"max_rate": 120.0, "min_rate": 0.1, "speck_pixels": 2}
    ingest(tmp_path / "a.nc", tmp_path / "archive", CF(), **limits)
    read = Cleaned(CF(), Quality(**limits)).read(tmp_path / "a.nc", step_minutes=5)
    archive = Archive.open(tmp_path / "archive")
    check_encoded(archive.read(0, 4), read[RAIN].values)
    assert read[RAIN][1, 5, 5] == 120 and np.isnan(read[RAIN][2, 6, 6]) and read[RAIN][3, 6, 6] == 0
    assert read[RAIN].attrs["cell_methods"] == "time: mean"
