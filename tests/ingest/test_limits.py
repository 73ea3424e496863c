"""Files that claim more than any image has, or point at other files: refused before they cost memory."""

import bz2
import gzip
import io
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import test_fmi
import test_mrms
import test_odim
from omegaconf import OmegaConf

from raincast import assembly, schema
from raincast.archive import Archive, write_part
from raincast.archive.limits import open_hdf5
from raincast.ingest.archive_folder import describe
from raincast.ingest.quality import Cleaned, Quality
from raincast.ingest.readers import Limited, Reader
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.fmi import FMI
from raincast.ingest.readers.geotiff import GeoTIFF
from raincast.ingest.readers.knmi import KNMI
from raincast.ingest.readers.mrms import MRMS
from raincast.ingest.readers.odim import ODIM
from raincast.ingest.region import Region

BOMB = bytes(2**26)
MEGAPIXELS = 1.0
MOST = 8 * 2**20
"""A limit of a megapixel: pieces have at most 8 MB, and the 64 MB of a bomb are never there."""


def fmi_gzip(folder: Path) -> tuple[Reader, Path]:
    plain = test_fmi.write_pgm(folder / "plain.pgm").read_bytes()
    (folder / "a.pgm.gz").write_bytes(gzip.compress(plain + BOMB))
    return FMI(step_minutes=5), folder / "a.pgm.gz"


def mrms_gzip(folder: Path) -> tuple[Reader, Path]:
    message = test_mrms.message(test_mrms.RATES)
    return MRMS(step_minutes=2), test_mrms.write(folder / "a.grib2.gz", gzip.compress(message + BOMB))


def odim_packed(pack: Callable[[bytes], bytes]) -> Callable[[Path], tuple[Reader, Path]]:
    def write(folder: Path) -> tuple[Reader, Path]:
        plain = test_odim.write(folder / "plain.h5").read_bytes()
        (folder / "a.h5.packed").write_bytes(pack(plain + BOMB))
        return ODIM(step_minutes=5), folder / "a.h5.packed"

    return write


def tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("a.h5")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def knmi_shape(folder: Path) -> tuple[Reader, Path]:
    """An image of 20 GB that is never written: HDF5 would fill it with zeros."""
    path = folder / "knmi.h5"
    with h5py.File(path, "a") as file:
        del file["image1/image_data"]
        file["image1"].create_dataset("image_data", (100_000, 100_000), "u2", chunks=(10, 10))
    return KNMI(), path


def knmi_rows(folder: Path) -> tuple[Reader, Path]:
    path = folder / "knmi.h5"
    with h5py.File(path, "a") as file:
        file["geographic"].attrs["geo_number_rows"] = np.array([2_000_000_000], np.int32)
    return KNMI(), path


def knmi_chunk(folder: Path) -> tuple[Reader, Path]:
    """A chunk that declares a few bytes and unpacks to many."""
    path = folder / "knmi.h5"
    with h5py.File(path, "a") as file:
        shape = file["image1/image_data"].shape
        del file["image1/image_data"]
        data = file["image1"].create_dataset("image_data", shape, "u2", chunks=shape, compression="gzip")
        data.id.write_direct_chunk((0, 0), zlib.compress(BOMB))
    return KNMI(), path


def cf_shape(folder: Path) -> tuple[Reader, Path]:
    import netCDF4

    path = folder / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("time", 1), ("y", 4000), ("x", 4000)):
            file.createDimension(name, size)
            file.createVariable(name, "f8", (name,))[:] = np.arange(size)
        file["time"].units = "hours since 2020-01-01"
        file.createVariable("rain", "f4", ("time", "y", "x"), zlib=True, chunksizes=(1, 500, 500)).units = "mm/h"
    return CF(step_minutes=5, crs="EPSG:3035"), path


def cf_axis(folder: Path) -> tuple[Reader, Path]:
    import netCDF4

    path = folder / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("time", 10**9), ("y", 3), ("x", 3)):
            file.createDimension(name, size)
            file.createVariable(name, "f8", (name,), zlib=True)
        file.createVariable("rain", "f4", ("time", "y", "x"), zlib=True).units = "mm/h"
    return CF(step_minutes=5, crs="EPSG:3035"), path


def zarr_axis(folder: Path) -> tuple[Reader, Path]:
    import zarr

    group = zarr.open_group(folder / "a.zarr", mode="w")
    group.create_array("time", shape=(10**9,), chunks=(10**9,), dtype="f8", dimension_names=["time"])
    return CF(), folder / "a.zarr"


def tiff_size(folder: Path) -> tuple[Reader, Path]:
    rasterio = pytest.importorskip("rasterio")
    options = {
        "driver": "GTiff",
        "width": 20_000,
        "height": 20_000,
        "count": 1,
        "dtype": "uint8",
        "SPARSE_OK": True,
    }
    place = {"crs": "EPSG:3035", "transform": rasterio.Affine(1000, 0, 0, 0, -1000, 0)}
    with rasterio.open(
        folder / "202001010000.tif", "w", **options, **place, blockxsize=256, blockysize=256, tiled=True
    ):
        pass
    return GeoTIFF(quantity="rate", step_minutes=5), folder / "202001010000.tif"


CLAIMS = [
    fmi_gzip,
    mrms_gzip,
    odim_packed(gzip.compress),
    odim_packed(bz2.compress),
    odim_packed(lambda content: tarred(content)),
    odim_packed(lambda content: tarred(gzip.compress(content))),
    knmi_shape,
    knmi_rows,
    knmi_chunk,
    cf_shape,
    cf_axis,
    zarr_axis,
    tiff_size,
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_claims_too_much_is_refused_with_the_key_and_without_the_memory(
    tmp_path: Path, write_knmi: Callable[..., Path], claim: Callable[[Path], tuple[Reader, Path]]
) -> None:
    write_knmi("2020-01-01T00:05", name="knmi.h5")
    reader, path = claim(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{path.name}.*max_megapixels=1 allows") as raised:
            Limited(reader, MEGAPIXELS).read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(raised.value).endswith("set a larger max_megapixels=…")
    assert peak < 4 * MOST


def test_the_limit_can_be_raised_and_is_no_setting_of_an_archive(tmp_path: Path) -> None:
    path = test_fmi.write_pgm(tmp_path / "a.pgm.gz", np.zeros((1100, 1000), np.uint8), zipped=True)
    with pytest.raises(ValueError, match="1100 × 1000 pixels"):
        Limited(FMI(step_minutes=5), 1.0).read(path)
    assert Limited(FMI(step_minutes=5), 1.2).read(path)[schema.RAIN].shape == (1, 1100, 1000)
    settings = [describe(reader, Quality(), Region()) for reader in (FMI(), Limited(FMI(), 7.0))]
    assert settings[0] == settings[1]
    with pytest.raises(ValueError, match="max_megapixels=0"):
        Limited(FMI(), 0)


def test_the_key_of_forecasts_reaches_the_reader() -> None:
    source = {"_target_": "raincast.ingest.readers.fmi.FMI", "step_minutes": 5}
    quality = {"_target_": "raincast.ingest.quality.Quality"}
    cfg = OmegaConf.create({"source": source, "quality": quality, "max_megapixels": 3})
    made = assembly.reader(cfg)
    assert isinstance(made, Cleaned) and isinstance(made.reader, Limited)
    assert made.reader.max_megapixels == 3


def external_storage(path: Path, elsewhere: Path) -> None:
    with h5py.File(path, "a") as file:
        data = file["image1/image_data"]
        shape, size = data.shape, data.size * data.dtype.itemsize
        del file["image1/image_data"]
        file["image1"].create_dataset("image_data", shape, "u2", external=[(str(elsewhere), 0, size)])


def external_link(path: Path, elsewhere: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["image1/image_data"]
        file["image1/image_data"] = h5py.ExternalLink(str(elsewhere), "image1/image_data")


def virtual(path: Path, elsewhere: Path) -> None:
    with h5py.File(path, "a") as file:
        shape = file["image1/image_data"].shape
        layout = h5py.VirtualLayout(shape, "u2")
        layout[:] = h5py.VirtualSource(str(elsewhere), "image1/image_data", shape)
        del file["image1/image_data"]
        file["image1"].create_virtual_dataset("image_data", layout)


@pytest.mark.parametrize("point", [external_storage, external_link, virtual])
def test_a_file_that_points_at_another_is_not_read(
    tmp_path: Path, write_knmi: Callable[..., Path], point: Callable[[Path, Path], None]
) -> None:
    other = write_knmi("2020-01-01T00:05", name="other.h5")
    path = write_knmi("2020-01-01T00:05", name="a.h5")
    point(path, other)
    with pytest.raises(ValueError, match=r"a\.h5 .*image1/image_data .*another file, which is not"):
        KNMI().read(path)


def test_nor_is_an_archive_that_points_at_another(tmp_path: Path) -> None:
    write_part(schema.mock_archive(3), tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc", "a") as file:
        file["more"] = h5py.ExternalLink("/etc/hostname", "/")
    with pytest.raises(ValueError, match=r"a\.nc .*more is a link to another file"):
        Archive.open(tmp_path / "a.nc")


def test_links_within_a_file_are_followed(tmp_path: Path, write_knmi: Callable[..., Path]) -> None:
    path = write_knmi("2020-01-01T00:05")
    with h5py.File(path, "a") as file:
        file.move("image1/image_data", "kept")
        file["image1/image_data"] = h5py.SoftLink("/kept")
        file["image1/again"] = file["kept"]
    assert np.isfinite(KNMI().read(path)[schema.RAIN].values).any()


def test_a_large_honest_chunk_is_read(tmp_path: Path) -> None:
    """Packed well enough to be suspicious: it is unpacked piece by piece, and passes."""
    values = np.random.default_rng(1).integers(0, 3, (2000, 2000), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "a", data=values, chunks=values.shape, compression="gzip", shuffle=True, fletcher32=True
        )
    with open_hdf5(tmp_path / "a.h5") as file:
        assert file["a"].id.get_storage_size() * 1032 > 400e6
        np.testing.assert_array_equal(file["a"][()], values)
