"""Chunks read past netCDF4: the same codes, within a limit of memory, and its word on what is damaged."""

import re

import h5py
import netCDF4
import numpy as np
import pytest

from raincast import schema
from raincast.archive import Archive, write_part
from raincast.archive.chunks import ChunkedCodes, Unpacked
from raincast.archive.rates import MISSING_CODE

SHAPE = (21, 70, 150)  # with chunks that are not full at each far edge


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.nc"
    dataset = schema.mock_archive(*SHAPE)
    rng = np.random.default_rng(0)
    rain = rng.gamma(0.3, 5.0, SHAPE).astype(np.float32)
    rain[rng.random(SHAPE) < 0.1] = np.nan
    dataset[schema.RAIN].values[:] = rain
    write_part(dataset, path)
    return path


@pytest.fixture(scope="module")
def codes(path):
    return read_by_netcdf4(path)


def read_by_netcdf4(path):
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        return file[schema.RAIN][:]


def rewritten(path, to, **encoding):
    """The file with its rain packed in another way."""
    file_format = encoding.pop("file_format", "NETCDF4")
    with netCDF4.Dataset(path) as old, netCDF4.Dataset(to, "w", format=file_format) as new:
        old.set_auto_maskandscale(False)
        for name, dimension in old.dimensions.items():
            new.createDimension(name, dimension.size)
        for name, variable in old.variables.items():
            attrs = {key: variable.getncattr(key) for key in variable.ncattrs()}
            fill = attrs.pop("_FillValue", None)
            dtype = variable.dtype if variable.dtype.itemsize < 8 or file_format == "NETCDF4" else "f8"
            own = {"datatype": dtype} | (encoding if name == schema.RAIN else {})
            made = new.createVariable(name, dimensions=variable.dimensions, fill_value=fill, **own)
            made.set_auto_maskandscale(False)
            made.setncatts(attrs)
            made[...] = variable[...]
        new.setncatts({key: old.getncattr(key) for key in old.ncattrs()})
    return to


def random_slice(rng, size):
    start, stop = np.sort(rng.choice(size + 1, 2, replace=False))
    return slice(int(start), int(stop))


@pytest.mark.parametrize("limit", [0, 10**5, 10**8])
def test_any_window_is_what_netcdf4_reads(path, codes, limit):
    chunks = ChunkedCodes.of(path, schema.RAIN, Unpacked(limit))
    rng = np.random.default_rng(1)
    windows = [tuple(random_slice(rng, size) for size in SHAPE) for _ in range(40)]
    for window in [*windows, (slice(None), slice(None), slice(-20, None))]:
        np.testing.assert_array_equal(chunks.read(*window), codes[window])


def test_they_are_written_into_views_of_any_strides(path, codes):
    chunks = ChunkedCodes.of(path, schema.RAIN, Unpacked(10**8))
    window = slice(3, 20), slice(5, 69), slice(60, 130)
    for turn in range(4):
        memory = np.zeros(np.rot90(codes[window], turn, axes=(1, 2)).shape, np.int16)
        chunks.read(*window, out=np.rot90(memory, -turn, axes=(1, 2)))
        np.testing.assert_array_equal(memory, np.rot90(codes[window], turn, axes=(1, 2)))


def test_no_more_is_kept_than_the_limit_and_what_was_used_last():
    chunk = np.zeros((2, 5), np.int16)  # 20 bytes
    unpacked = Unpacked(limit=60)
    for number in range(3):
        unpacked.keep(("a", number, 0, 0), chunk)
    assert unpacked.get(("a", 0, 0, 0)) is chunk
    unpacked.keep(("a", 3, 0, 0), chunk)
    assert unpacked.num_bytes == 60
    assert [unpacked.get(("a", number, 0, 0)) is chunk for number in range(4)] == [True, False, True, True]
    unpacked.keep(("b", 0, 0, 0), np.zeros(31, np.int16))
    assert unpacked.num_bytes == 0


def test_a_chunk_is_unpacked_once_while_it_is_kept(path, codes, tmp_path):
    """Even if it is not there any more."""
    own = tmp_path / "a.nc"
    own.write_bytes(path.read_bytes())
    chunks = ChunkedCodes.of(own, schema.RAIN, Unpacked(10**8))
    chunks.read(slice(0, 8), slice(0, 64), slice(0, 64))
    spoil(own, (0, 0, 0), 0, bytes(16))
    np.testing.assert_array_equal(chunks.read(slice(0, 8), slice(0, 64), slice(0, 64)), codes[:8, :64, :64])


def test_each_chunk_is_checked_once_for_negative_codes(path, tmp_path):
    for number, pixel in enumerate([(0, 0, 0), (9, 69, 70), (20, 3, 149)]):
        own = tmp_path / f"{number}.nc"
        own.write_bytes(path.read_bytes())
        with netCDF4.Dataset(own, "a") as file:
            file.set_auto_maskandscale(False)
            file[schema.RAIN][pixel] = -1
        chunks = ChunkedCodes.of(own, schema.RAIN, Unpacked(0))
        for others in (True, True, False):
            for index in np.ndindex(chunks.checked.shape):
                first = np.multiply(index, chunks.chunk)
                last = np.minimum(first + chunks.chunk, SHAPE)
                if others == (not ((first <= pixel) & (pixel < last)).all()):
                    chunks.read(*map(slice, first, last))
            assert chunks.has_negative == (not others)
            assert chunks.checked.sum() == chunks.checked.size - others


def test_a_file_that_was_closed_for_others_is_opened_again(path, codes):
    chunks = ChunkedCodes.of(path, schema.RAIN, Unpacked(0))
    for _ in range(2):
        np.testing.assert_array_equal(chunks.read(slice(0, 9), slice(0, 70), slice(0, 70)), codes[:9, :, :70])
        chunks.files.close()


@pytest.mark.parametrize(
    "encoding",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zstd", "fletcher32": True},
        {"compression": "zstd", "datatype": ">i2", "endian": "big"},
        {"compression": "zstd", "chunksizes": (1, 70, 150)},
        {"file_format": "NETCDF3_CLASSIC"},
    ],
    ids=str,
)
def test_files_packed_in_other_ways_are_read_too(path, codes, tmp_path, encoding):
    other = rewritten(path, tmp_path / "a.nc", **encoding)
    in_chunks = ChunkedCodes.of(other, schema.RAIN, Unpacked(10**8)) is not None
    assert in_chunks == ("chunksizes" in encoding)
    archive = Archive.open(other)
    np.testing.assert_array_equal(archive.read_codes(2, 15, x=slice(60, 130)), codes[2:17, :, 60:130])


def test_chunks_that_were_never_written_are_missing(path, tmp_path):
    own = tmp_path / "a.nc"
    own.write_bytes(path.read_bytes())
    with netCDF4.Dataset(own, "a") as file:
        file.set_auto_maskandscale(False)
        # 11 more frames: of those before the last one nothing is written where a chunk begins
        file["time"][21:32] = file["time"][20] + 300 * np.arange(1, 12)
        file[schema.RAIN][31, :64, :64] = 7
    found = Archive.open(own).read_codes(24, 8)
    assert (found[7, :64, :64] == 7).all() and (found[:7] == MISSING_CODE).all()
    assert (found[7, 64:] == MISSING_CODE).all() and (found[7, :, 64:] == MISSING_CODE).all()


def spoil(path, origin, offset, content):
    """Write `content` over the packed chunk at `origin`."""
    with h5py.File(path) as file:
        found = []
        file[schema.RAIN].id.chunk_iter(found.append)
        (at,) = [info.byte_offset for info in found if info.chunk_offset == origin]
    with path.open("r+b") as raw:
        raw.seek(at + offset)
        raw.write(content)


@pytest.mark.parametrize(
    ("offset", "content"),
    # a frame begins with its magic number, a descriptor and, at 5 of chunks of 64 KiB, its size: RFC 8878
    [(0, bytes(4)), (4, b"\xe0" + b"\x7f" * 8), (8, b"\xff" * 200)],
    ids=["no frame", "a size that nobody has", "no blocks"],
)
def test_a_damaged_chunk_is_an_error_that_names_the_file(path, tmp_path, offset, content):
    own = tmp_path / "a.nc"
    own.write_bytes(path.read_bytes())
    spoil(own, (8, 0, 64), offset, content)
    archive = Archive.open(own)
    with pytest.raises(ValueError, match=re.escape(f"{own} cannot be read")):
        archive.read_codes(4, 8)
    archive.read_codes(0, 8)  # what is whole is read


def test_a_file_that_is_cut_is_an_error_that_names_it(path, tmp_path):
    own = tmp_path / "a.nc"
    own.write_bytes(path.read_bytes())
    archive = Archive.open(own)
    archive.read_codes(0, 1, y=slice(0, 4), x=slice(0, 4))
    with own.open("r+b") as file:
        file.truncate(own.stat().st_size // 3)
    with pytest.raises(ValueError, match=re.escape(f"{own} cannot be read")):
        archive.read_codes(0, 21)
