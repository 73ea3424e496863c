"""Fields travel in the numbers of their files, static maps not at all; on the device they are what they were."""

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.data import default_collate

from raincast import schema
from raincast.archive import write_part
from raincast.data.channels import Site
from raincast.data.channels.field import Field
from raincast.data.datamodule import RadarDataModule
from raincast.data.dataset import orient
from raincast.data.sampler import Place
from raincast.data.windows import BlockSplit
from raincast.schema import mock_archive
from raincast.transforms import LinearScaling

PLAIN = LinearScaling()
GRID = schema.mock_grid()
SITE = Site(GRID, lambda: None, "the archive")
ALL = slice(None)


def minutes(*numbers: float) -> np.ndarray:
    return np.datetime64("2026-01-01", "ns") + np.array([schema.step_timedelta(n) for n in numbers])


def write(path: Path, codes: np.ndarray, times: np.ndarray | None, grid=GRID, **attrs: Any) -> Path:
    """Numbers (T, H, W) or (H, W) as they are, with the attributes that say what they mean."""
    dims = (schema.TIME, schema.Y, schema.X)[3 - codes.ndim :]
    field = xr.Dataset({"v": (dims, codes, attrs)}, coords=grid.to_coords())
    if times is not None:
        field = field.assign_coords({schema.TIME: times})
    encoding: Any = {"v": {} if "_FillValue" in attrs else {"_FillValue": None}}
    if path.suffix == ".zarr":
        field.to_zarr(path, consolidated=False)
    else:
        field.to_netcdf(path, encoding=encoding)
    return path


def random_codes(dtype: str, num_times: int = 12, grid=GRID) -> np.ndarray:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(5)
    return rng.integers(info.min, info.max, (num_times, *grid.shape), dtype, endpoint=True)


def datamodule(folder: Path, channels: dict[str, Any], **settings: Any) -> RadarDataModule:
    """60 frames of 5 minutes, 3 → 4."""
    if not (folder / "archive").exists():
        (folder / "archive").mkdir()
        write_part(mock_archive(60), folder / "archive" / "a.nc")
    split = BlockSplit(block_minutes=100, fractions=(0.5, 0.25, 0.25), embargo_minutes=0)
    sizes = {"input_steps": 3, "lead_steps": 4, "crop": 6, "num_workers": 0} | settings
    return RadarDataModule(folder / "archive", split=split, channels=channels, **sizes)


PACKINGS = {
    "int16": ("int16", {"scale_factor": 0.01, "add_offset": 273.15, "_FillValue": np.int16(-32768)}),
    "uint8": ("uint8", {"scale_factor": 0.5, "add_offset": -32.0, "_FillValue": np.uint8(255)}),
    "int8": ("int8", {"scale_factor": 0.1}),
    "uint16": ("uint16", {"_FillValue": np.uint16(65535)}),
    "two codes for missing": ("int16", {"_FillValue": np.int16(-1), "missing_value": np.int16(-2)}),
    "signed, meant unsigned": ("int8", {"_Unsigned": "true", "_FillValue": np.int8(-1), "scale_factor": 2.0}),
    "plain": ("int16", {}),
}


@pytest.mark.parametrize(
    ("name", "suffix"),
    # a Zarr store that xarray writes always says what is missing
    [(n, ".nc") for n in PACKINGS] + [(n, ".zarr") for n in PACKINGS if "_FillValue" in PACKINGS[n][1]],
)
def test_codes_travel_as_stored_and_become_what_xarray_makes_of_them(name: str, suffix: str, tmp_path: Path):
    dtype, attrs = PACKINGS[name]
    codes = random_codes(dtype)
    missing = [attrs[key] for key in ("_FillValue", "missing_value") if key in attrs]
    codes[5, 3, 2 : 2 + len(missing)] = missing
    path = write(tmp_path / f"a{suffix}", codes, minutes(*range(0, 60, 5)), **attrs)
    data = datamodule(tmp_path, {"v": Field(str(path), "v", "past", PLAIN)})
    place = Place(4, 2, 1, 6, 8)
    stored = data.dataset[place]
    found = stored["channels"]["v"]
    assert found["frames"].dtype == getattr(torch, "uint8" if "_Unsigned" in attrs else dtype)
    np.testing.assert_array_equal(found["frames"].numpy().view(dtype), codes[4:7, 2:8, 1:9])
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        expected = dataset["v"].values.astype(np.float32)[4:7, 2:8, 1:9]
    # xarray computes in float32 where there is a scale alone
    np.testing.assert_allclose(data.dataset.sample(place)["past"][:, 0], expected, rtol=2e-7, atol=0)
    assert np.isnan(expected[1, 1, 1 : 1 + len(missing)]).all()


@pytest.mark.parametrize(
    ("dtype", "attrs"),
    [
        ("int32", {"scale_factor": 1e-5, "_FillValue": np.int32(-1)}),
        ("float64", {}),
        ("float32", {"_FillValue": np.float32(1e20), "missing_value": np.float32(-9)}),
        ("int16", {"_FillValue": np.int16(-1), "missing_value": np.array([-2, -3], np.int16)}),
    ],
)
def test_other_numbers_are_float32_when_they_are_read(dtype: str, attrs: dict[str, Any], tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-9, 9, (12, *GRID.shape)).astype(dtype)
    if dtype == "float32":
        codes[:, 3:5] = 1e20
    path = write(tmp_path / "a.nc", codes, minutes(*range(0, 60, 5)), **attrs)
    data = datamodule(tmp_path, {"v": Field(str(path), "v", "past", PLAIN)})
    place = Place(0, 0, 0, 12, 10)
    assert data.dataset[place]["channels"]["v"]["frames"].dtype == torch.float32
    with xr.open_dataset(path) as dataset:
        expected = dataset["v"].values.astype(np.float32)[:3]
    np.testing.assert_array_equal(data.dataset.sample(place)["past"][:, 0], expected)
    assert np.isnan(expected).any() == bool(attrs)


def test_files_that_are_packed_each_in_its_own_way_travel_alike(tmp_path: Path) -> None:
    """Three files of five times, of a step other than the archive's; a window lies in two of them."""
    (tmp_path / "many").mkdir()
    codes = random_codes("int16", 5)
    values = []
    for number in range(3):
        scale, offset, fill = 0.1 * (number + 1), 10.0 * number, np.int16(codes[0, 0, number])
        attrs = {"scale_factor": scale, "add_offset": offset, "_FillValue": fill}
        write(tmp_path / "many" / f"{number}.nc", codes, minutes(*(50 * number + 10 * np.arange(5))), **attrs)
        values.append(np.where(codes == fill, np.nan, codes * scale + offset))
    own = np.concatenate(values).astype(np.float32)
    data = datamodule(tmp_path, {"v": Field(str(tmp_path / "many"), "v", "future", PLAIN)})
    starts = (0, 7, 8, 9)  # 7 begins at 35 minutes: between two frames of the first file
    batch = default_collate([data.dataset[Place(start, 0, 0, 12, 10)] for start in starts])
    # 30 minutes hold three frames of 10, and one before and one after: of what 7 steps in float32 would take, 5/14
    assert batch["channels"]["v"]["frames"].shape == (4, 5, 12, 10)
    assert batch["channels"]["v"]["frames"].dtype == torch.int16
    sample: Any = data.on_after_batch_transfer(batch, 0)
    found = torch.cat([sample["past"], sample["future"]], dim=1)[:, :, 0].numpy()
    for number, start in enumerate(starts):
        for step in range(7):
            low, rest = divmod(start + step, 2)
            half = np.float32(0.5)
            expected = own[low] if rest == 0 else half * own[low] + half * own[low + 1]
            np.testing.assert_array_equal(found[number, step], expected)
    assert np.isnan(found).any()


def test_no_window_needs_more_frames_than_its_batch_has(tmp_path: Path) -> None:
    """Of own times at random, with gaps, by each way of reading between them."""
    rng = np.random.default_rng(0)
    own = np.unique(np.concatenate([rng.integers(0, 400, 60), np.arange(100, 130)]))
    write(tmp_path / "a.nc", own[:, None, None].astype(np.int16) + np.zeros(GRID.shape, np.int16), minutes(*own))
    for method in ("previous", "nearest", "linear"):
        field = Field(str(tmp_path / "a.nc"), "v", "future", PLAIN, time_method=method, max_age_minutes=9)
        series: Any = field.bind("v", SITE)
        for _ in range(60):
            asked = rng.integers(-20, 400) + rng.integers(1, 12) * np.arange(rng.integers(1, 9))
            found = series.read(minutes(*asked), slice(2, 3), slice(4, 5))[:, 0, 0]
            for time, value in zip(asked, found, strict=True):
                before, after = own[own <= time], own[own >= time]
                past = before[-1] if before.size and time - before[-1] <= 9 else None
                later = after[0] if after.size and after[0] - time <= 9 else None
                if method == "linear" and None not in (past, later):
                    expected: Any = time  # the values are the times, so that the mean of both sides is
                elif method == "nearest" and None not in (past, later):
                    expected = later if later - time < time - past else past
                elif method == "nearest":
                    expected = later if past is None else past
                else:
                    expected = past if method == "previous" else None
                assert np.isnan(value) if expected is None else value == pytest.approx(expected, abs=1e-4)


def test_static_maps_stay_and_are_cut_and_turned_where_they_are(tmp_path: Path) -> None:
    """Of two archives of different grids, in one batch; and a vector of which one component is missing somewhere."""
    wide = schema.mock_grid(14, 17)
    (tmp_path / "other").mkdir()
    write_part(mock_archive(60, 14, 17), tmp_path / "other" / "a.nc")
    maps = {}
    for name, grid in (("own", GRID), ("more", wide)):
        codes = {part: random_codes("int16", 1, grid)[0] + part for part in (1, 2, 3)}
        for part, values in codes.items():
            write(tmp_path / f"{name}{part}.nc", values, None, grid, _FillValue=values[4, 5])
        maps[name] = [np.where(v == v[4, 5], np.nan, v).astype(np.float32) for v in codes.values()]
    names = ("height", "slope_x", "slope_y")
    vectors = (None, "slope.x", "slope.y")
    declared = {
        name: Field(str(tmp_path / f"own{part}.nc"), "v", "static", PLAIN, vector=vector)
        for part, (name, vector) in enumerate(zip(names, vectors, strict=True), start=1)
    }
    there = {name: {"path": str(tmp_path / f"more{part}.nc")} for part, name in enumerate(names, start=1)}
    data = datamodule(tmp_path, declared, more=[{"archive": str(tmp_path / "other"), "channels": there}])
    signs = np.sign([GRID.x[1] - GRID.x[0], GRID.y[1] - GRID.y[0]])
    for size in ((6, 6), (5, 7)):
        places = [Place(k, k % 5, k % 3, *size, k % 8, 1.0, k // 8 % 2) for k in range(32)]
        batch = default_collate([data.dataset[place] for place in places])
        assert batch["channels"] == {}, "nothing of them travels"
        found = data.dataset.decode(batch)["past"]
        assert found.shape == (32, 3, 3, *size)
        for number, place in enumerate(places):
            y, x = slice(place.y, place.y + size[0]), slice(place.x, place.x + size[1])
            height, u, v = (orient(m[y, x], place.orientation) for m in maps["more" if place.source else "own"])
            for step in range(3):
                np.testing.assert_array_equal(found[number, step, 0], height)
            # by the definition of a rotation: a quarter turn leads a step along the row to one up the column
            quarters, mirrored = divmod(place.orientation, 2)
            east, south = u * signs[0], v * signs[1]
            for _ in range(quarters if size[0] == size[1] else 2 * (quarters % 2)):
                east, south = south, -east
            east = -east if mirrored else east
            np.testing.assert_array_equal(found[number, 0, 1], east * signs[0])
            np.testing.assert_array_equal(found[number, 0, 2], south * signs[1])
    assert found.isnan().any()


def test_archives_whose_fields_are_stored_differently_share_a_batch(tmp_path: Path) -> None:
    times = minutes(*range(0, 60, 5))
    codes = random_codes("int16")
    write(tmp_path / "codes.nc", codes, times, scale_factor=0.25)
    write(tmp_path / "values.nc", codes.astype(np.float32), times)
    field = Field(str(tmp_path / "codes.nc"), "v", "past", PLAIN)
    there = {"archive": str(tmp_path / "archive"), "channels": {"v": {"path": str(tmp_path / "values.nc")}}}
    data = datamodule(tmp_path, {"v": field})  # writes the archive
    data = datamodule(tmp_path, {"v": field}, more=[there])
    batch = default_collate([data.dataset[Place(1, 0, 0, 6, 6, source=number)] for number in (0, 1)])
    assert batch["channels"]["v"]["frames"].dtype == torch.float32
    found = data.dataset.decode(batch)["past"][:, :, 0]
    np.testing.assert_array_equal(found[0], codes[1:4, :6, :6] * np.float32(0.25))
    np.testing.assert_array_equal(found[1], codes[1:4, :6, :6])


def test_what_holds_no_numbers_is_refused(tmp_path: Path) -> None:
    text = np.full((2, *GRID.shape), "a", dtype=object)
    field = xr.Dataset({"v": ((schema.TIME, schema.Y, schema.X), text)}, coords=GRID.to_coords())
    field.assign_coords({schema.TIME: minutes(0, 5)}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"channels\.v: .*a\.nc: v cannot be a channel: it holds .*, not numbers"):
        Field(str(tmp_path / "a.nc"), "v", "past", PLAIN).bind("v", SITE)


def test_files_of_a_field_keep_as_little_unpacked_as_those_of_an_archive(tmp_path: Path) -> None:
    from raincast.archive.chunks import open_files
    from raincast.archive.open_part import UNPACKED_BYTES

    for number in range(16):
        write(tmp_path / f"{number:02}.nc", random_codes("int16", 5), minutes(*(25 * number + 5 * np.arange(5))))
    series = Field(str(tmp_path), "v", "past", PLAIN).bind("v", SITE)
    series.read(minutes(*range(0, 400, 25)), ALL, ALL)
    # other tests leave files of h5py there
    opened = [
        file
        for file in open_files().values()
        if isinstance(file, netCDF4.Dataset) and Path(file.filepath()).parent == tmp_path
    ]
    kept = [file.variables["v"].get_var_chunk_cache()[0] for file in opened]
    assert len(kept) == 16 and sum(kept) == UNPACKED_BYTES


def test_a_field_with_one_level_is_read_without_it(tmp_path: Path) -> None:
    codes = random_codes("int16")
    dims = (schema.TIME, "level", schema.Y, schema.X)
    field = xr.Dataset({"v": (dims, codes[:, None])}, coords={**GRID.to_coords(), "level": [500.0]})
    for kind in ("NETCDF4", "NETCDF3_CLASSIC"):
        path = tmp_path / f"{kind}.nc"
        field.assign_coords({schema.TIME: minutes(*range(0, 60, 5))}).to_netcdf(path, format=kind)
        read = Field(str(path), "v", "past", PLAIN).bind("v", SITE).read
        np.testing.assert_array_equal(read(minutes(10, 15), slice(2, 5), ALL), codes[2:4, 2:5])
