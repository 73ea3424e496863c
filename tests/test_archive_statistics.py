"""The numbers of an archive: against loops over all its pixels, in any blocks, parts and formats."""

from pathlib import Path

import numpy as np
import pytest

from raincast import schema
from raincast.archive import Archive, statistics, write_part
from raincast.archive.statistics import RATE_EDGES, measure

NAN = np.nan


def rainy(num_times: int, start: str, **options: object) -> object:
    """Rain with zeros, drizzle, a missing corner, a frame of which nothing was seen."""
    mock = schema.mock_archive(num_times, 30, 20, start=start, **options)  # type: ignore[arg-type]
    rain = mock[schema.RAIN].values
    rain[rain < 1] = 0
    rain[:, 20:, 10:] *= 0.01
    rain[1, :15] = NAN
    rain[2] = NAN
    return mock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_part(rainy(17, "2025-12-31T22:30", missing=(3, 4, 9)), tmp_path / "a/2025-12-31.nc")  # type: ignore[arg-type]
    write_part(rainy(11, "2026-01-02T00:00", seed=1), tmp_path / "a/2026-01-02.nc")  # type: ignore[arg-type]
    return tmp_path / "a"


@pytest.mark.parametrize("block", [1, 3000, 2**24])
def test_sums_are_those_of_all_frames(folder: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK_PIXELS", block)
    monkeypatch.setattr(statistics, "CHUNKS", (8, 7, 7))
    archive = Archive.open(folder)
    told: list[tuple[int, int]] = []
    found = measure(archive, lambda done, total: told.append((done, total)))
    rain = archive.read(0, archive.num_times)
    observed, wet = np.isfinite(rain), np.nan_to_num(rain) > np.float32(0.1)
    np.testing.assert_array_equal(found.observed_pixels, observed.sum(axis=(1, 2)))
    np.testing.assert_array_equal(found.wet_pixels, wet.sum(axis=(1, 2)))
    np.testing.assert_array_equal(found.observed_frames, observed.sum(axis=0))
    np.testing.assert_allclose(found.wet_share, wet.sum(axis=0) / np.where(observed.any(0), observed.sum(0), NAN))
    np.testing.assert_allclose(
        found.mean_rain, np.nansum(rain, 0, dtype=float) / np.where(observed.any(0), observed.sum(0), NAN)
    )
    np.testing.assert_allclose(found.frame_coverage, observed.mean(axis=(1, 2)))
    assert np.isnan(found.frame_wet_share[2]) and np.isfinite(found.frame_wet_share).sum() == archive.num_times - 2
    assert found.largest == np.nanmax(rain)
    assert found.largest_time == archive.times[int(np.nanargmax(rain)) // rain[0].size]
    low = np.float32([-1, *RATE_EDGES])
    high = np.float32([*RATE_EDGES, np.inf])
    counts = [((rain > a) & (rain <= b)).sum() for a, b in zip(low, high, strict=True)]
    np.testing.assert_array_equal(found.class_counts, counts)
    assert found.class_counts.sum() == observed.sum() and min(counts[:5]) > 0
    assert told[-1] == (archive.num_times, archive.num_times) and len(told) == 4


def test_times_gaps_and_months(folder: Path) -> None:
    found = measure(Archive.open(folder))
    # 22:30 to 23:50, then from 00:00 a day later
    assert found.num_due == 288 + 18 + 11 and found.num_missing == found.num_due - 25
    gaps = [(str(gap.after.astype("datetime64[m]")), gap.num_missing) for gap in found.gaps]
    assert gaps == [("2025-12-31T23:50", 289), ("2025-12-31T22:40", 2), ("2025-12-31T23:10", 1)]
    assert sum(gap.num_missing for gap in found.gaps) == found.num_missing
    months, wet, num_frames = found.wet_share_by("M")
    assert [str(month) for month in months] == ["2025-12", "2026-01"]
    np.testing.assert_array_equal(num_frames, [14, 11])
    for month, share in zip(months, wet, strict=True):
        own = found.archive.times.astype("datetime64[M]") == month
        assert share == found.wet_pixels[own].sum() / found.observed_pixels[own].sum()


def test_capped_pixels_are_known_or_not(folder: Path) -> None:
    assert measure(Archive.open(folder)).num_capped is None
    import netCDF4

    for number, path in enumerate(sorted(folder.glob("*.nc"))):
        with netCDF4.Dataset(path, "a") as file:
            file.capped_pixels = 5 + number
    assert measure(Archive.open(folder)).num_capped == 11


def test_nothing_observed_at_all(tmp_path: Path) -> None:
    mock = schema.mock_archive(3)
    mock[schema.RAIN].values[:] = NAN
    write_part(mock, tmp_path / "a.nc")
    found = measure(Archive.open(tmp_path / "a.nc"))
    assert np.isnan(found.largest) and np.isnat(found.largest_time)
    assert found.class_counts.sum() == 0 and np.isnan(found.mean_rain).all()
    assert np.isnan(found.wet_share_by("M")[1]).all()


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_other_archives_give_the_same(folder: Path, suffix: str) -> None:
    archive = Archive.open(folder)
    dataset = archive.to_dataset(0, archive.num_times).drop_vars(schema.MISSING_TIMES)
    path = folder.parent / f"b{suffix}"
    if suffix == ".nc":
        dataset.to_netcdf(path, engine="netcdf4")
    else:
        dataset.to_zarr(path)
    one, other = measure(archive), measure(Archive.open(path))
    for name in ("observed_pixels", "wet_pixels", "observed_frames", "wet_frames", "class_counts", "rain_sum"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_files_are_closed_one_after_the_other(tmp_path: Path) -> None:
    """Each open file keeps megabytes of chunks: a year of them would not fit into memory."""
    psutil = pytest.importorskip("psutil")
    for day in range(1, 10):
        write_part(schema.mock_archive(9, start=f"2026-01-{day:02d}"), tmp_path / f"2026-01-{day:02d}.nc")
    archive = Archive.open(tmp_path)
    numbers = []
    measure(archive, lambda *_: numbers.append(len(psutil.Process().open_files())))
    assert max(numbers) - min(numbers) <= 2, numbers
