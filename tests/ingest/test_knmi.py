"""KNMI HDF5: values, times, place and damage."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from pyproj import CRS, Transformer

from raincast import schema
from raincast.ingest.readers.knmi import KNMI

WriteKNMI = Callable[..., Path]
PATTERN = "knmi/20100826/*.h5"


def test_values_and_time(write_knmi: WriteKNMI) -> None:
    codes = [[0, 1, 250], [65535, 7, 3]]
    dataset = KNMI().read(write_knmi("2020-03-01T00:00", codes))
    # 0.01 mm in 5 min is 0.12 mm/h
    expected = np.array([[[0, 0.12, 30.0], [np.nan, 0.84, 0.36]]], np.float32)
    np.testing.assert_allclose(dataset[schema.RAIN], expected, rtol=1e-6)
    assert dataset[schema.TIME].values[0] == np.datetime64("2020-03-01T00:00")
    assert dataset.attrs[schema.STEP_MINUTES] == 5.0
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: mean"
    schema.check_archive(dataset)


def test_rate_follows_the_stated_interval(write_knmi: WriteKNMI) -> None:
    dataset = KNMI().read(write_knmi("2020-03-01T01:00", [[100, 0], [0, 0]], minutes=60))
    assert float(dataset[schema.RAIN][0, 0, 0]) == pytest.approx(1.0)  # 1 mm in an hour


def test_grid_is_in_metres_at_pixel_centres(write_knmi: WriteKNMI) -> None:
    grid = KNMI().scan(write_knmi("2020-03-01T00:00")).grid
    assert grid.y[0] == -3_650_500.0 and grid.y[1] == -3_651_500.0
    assert grid.x[0] == 500.0
    crs = CRS.from_wkt(grid.crs_wkt)
    assert crs.axis_info[0].unit_name == "metre"
    assert crs.ellipsoid is not None and crs.ellipsoid.semi_major_metre == pytest.approx(6378137.0)


def test_forecasts_are_refused(write_knmi: WriteKNMI) -> None:
    """A nowcast of KNMI has an image for each of 25 lead times, from its start to two hours later."""
    path = write_knmi("2026-08-17T02:00", name="RAD_NL25_RAC_FM_202608170000.h5", minutes=120)
    with h5py.File(path, "a") as file:
        for number, valid in ((1, b"17-AUG-2026;00:00:00.000"), (2, b"17-AUG-2026;00:05:00.000")):
            if number > 1:
                file.copy("image1", f"image{number}")
            file[f"image{number}"].attrs["image_datetime_valid"] = np.bytes_(valid)
    for call in (KNMI().scan, KNMI().read):
        with pytest.raises(ValueError, match=r"FM_202608170000\.h5 cannot be read .*2 images .*not observed"):
            call(path)


def test_recognised_by_content(write_knmi: WriteKNMI, tmp_path: Path) -> None:
    renamed = write_knmi("2020-03-01T00:00").rename(tmp_path / "data.bin")
    assert KNMI().recognises(renamed)
    (tmp_path / "text.h5").write_text("no radar")
    assert not KNMI().recognises(tmp_path / "text.h5")
    assert not KNMI().recognises(tmp_path / "absent.h5")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes(255 - byte for byte in content[:64]) + content[64:])


def _drop_image(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["image1/image_data"]


def _spoil_formula(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["image1/calibration"].attrs["calibration_formulas"] = np.bytes_(b"GEO=PV")


def _drop_time(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["overview"].attrs["product_datetime_end"]


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip_header, _drop_image, _spoil_formula, _drop_time])
def test_damage_names_file_and_reason(write_knmi: WriteKNMI, damage: Callable[[Path], None]) -> None:
    path = write_knmi("2020-03-01T00:00")
    damage(path)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read as KNMI HDF5: .+"):
        KNMI().read(path)


@pytest.mark.radar
def test_real_corners(radar_dir: Path) -> None:
    path = next(radar_dir.glob(PATTERN))
    grid = KNMI().scan(path).grid
    with h5py.File(path) as file:
        corners = file["geographic"].attrs["geo_product_corners"].reshape(4, 2)
    # outer corners of the image, in the file's order: lower left, upper left, upper right, lower right
    left, right, top, bottom = grid.x[0] - 500, grid.x[-1] + 500, grid.y[0] + 500, grid.y[-1] - 500
    to_grid = Transformer.from_crs(4326, grid.crs_wkt, always_xy=True)
    x, y = to_grid.transform(corners[:, 0], corners[:, 1])
    np.testing.assert_allclose(x, [left, left, right, right], atol=1000)
    np.testing.assert_allclose(y, [bottom, top, top, bottom], atol=1000)


@pytest.mark.radar
def test_real_figures(radar_dir: Path) -> None:
    paths = sorted(radar_dir.glob(PATTERN))
    heads = [KNMI().scan(path).times[0] for path in paths]
    assert len(heads) == 92
    assert min(heads) == np.datetime64("2010-08-26T00:00") and max(heads) == np.datetime64("2010-08-26T07:35")
    frames = np.stack([KNMI().read(path)[schema.RAIN].values[0] for path in paths[::4]])
    covered = ~np.isnan(frames)
    wet = [(frame[ok] > 0.1).mean() for frame, ok in zip(frames, covered, strict=True)]
    assert np.mean(wet) == pytest.approx(0.53, abs=0.02)
    assert min(wet) > 0.41 and max(wet) < 0.67
    assert covered.mean() == pytest.approx(0.26, abs=0.01)
    assert np.nanmax(frames) < 30
