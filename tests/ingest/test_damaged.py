"""Damaged files of each kind: a named error or a plausible frame; no crash, no hang, and the others go on.

RAINCAST_DAMAGED=300 tries as many of each kind. What is asserted of a file that is read all the same: after a
truncation, or where the format has checksums over all of it, its frame is what it was. A flipped byte among
uncompressed pixels, or in a time or a scale, cannot be known: these are counted, and their rates are in range.
"""

import bz2
import gzip
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import knmi_file
import numpy as np
import pytest
import test_bom
import test_fmi
import test_geotiff
import test_mch_gif
import test_meteonet
import test_mrms
import test_nimrod
import test_odim
import test_odim_services
import test_opera_tiff
import test_radolan
import test_sevir
from spoiling import Died, Watched, check_reads_or_names, damaged, ingest_with, open_as_archive, replace, spoilt

from raincast import schema
from raincast.archive import Archive, write_part
from raincast.ingest.readers import Reader
from raincast.ingest.readers.bom import BoM
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.fmi import FMI
from raincast.ingest.readers.geotiff import GeoTIFF
from raincast.ingest.readers.knmi import KNMI
from raincast.ingest.readers.mch_gif import MCHGif
from raincast.ingest.readers.meteonet import MeteoNet
from raincast.ingest.readers.mrms import MRMS
from raincast.ingest.readers.nimrod import NIMROD
from raincast.ingest.readers.odim import ODIM
from raincast.ingest.readers.opera_tiff import OperaTiff
from raincast.ingest.readers.radolan import RADOLAN
from raincast.ingest.readers.sevir import SEVIR

NUM = int(os.environ.get("RAINCAST_DAMAGED", 8))
SHAPE = (20, 30)
Write = Callable[[Path, int], Path]


def codes(minute: int) -> np.ndarray:
    return np.random.default_rng(minute).integers(0, 250, SHAPE, dtype=np.uint8)


def rates(minute: int) -> np.ndarray:
    return np.random.default_rng(minute).gamma(0.3, 4.0, SHAPE)


def odim(path: Path, minute: int) -> Path:
    time = {"starttime": f"00{minute:02d}00", "endtime": f"01{minute:02d}00"}
    levels = {"dataset1": {"startdate": "20241126", "enddate": "20241126", **time}}
    nominal = {"date": "20241126", "time": f"01{minute:02d}00"}
    return test_odim.write(
        path, {"dataset1/data1": (codes(minute), test_odim.RATE)}, levels=levels, nominal=nominal
    )


def odim_tar(path: Path, minute: int) -> Path:
    """A run of DWD: what was seen, and two forecasts."""
    return test_odim_services.run_of(path, f"2026-08-05T01:{minute:02d}", codes(minute))


def opera_tiff(path: Path, minute: int) -> Path:
    time = "20260810", f"01{minute:02d}00"
    return test_opera_tiff.write(path, rates(minute), start=time, end=time)


def gif(path: Path, minute: int) -> Path:
    return test_mch_gif.write(path, codes(minute).ravel(), stamp=f"AQC2006100{minute:02d}")


def pgm(path: Path, minute: int) -> Path:
    return test_fmi.write_pgm(path, codes(minute), time=f"2016092814{minute:02d}")


def pgm_gz(path: Path, minute: int) -> Path:
    return test_fmi.write_pgm(path, codes(minute), time=f"2016092814{minute:02d}", zipped=True)


def tiff(path: Path, minute: int) -> Path:
    return test_fmi.write_tiff(path, codes(minute), time=f"2021020201{minute:02d}")


def grib(path: Path, minute: int) -> Path:
    return test_mrms.write(path, test_mrms.message(rates(minute), time=(2019, 6, 10, 0, minute, 0)))


def grib_gz(path: Path, minute: int) -> Path:
    return test_mrms.write(path, gzip.compress(test_mrms.message(rates(minute), time=(2019, 6, 10, 0, minute, 0))))


def netcdf(path: Path, minute: int, **options: str) -> Path:
    start = f"2026-01-01T00:{minute:02d}"
    schema.mock_archive(1, *SHAPE, start=start, seed=minute).to_netcdf(path, **options)
    return path


def netcdf4(path: Path, minute: int) -> Path:
    return netcdf(path, minute, engine="netcdf4")


def netcdf3(path: Path, minute: int) -> Path:
    start = f"2026-01-01T00:{minute:02d}"
    mock = schema.mock_archive(1, *SHAPE, start=start, seed=minute).drop_vars(schema.MISSING_TIMES)
    mock.to_netcdf(path, engine="netcdf4", format="NETCDF3_CLASSIC")
    return path


def part(path: Path, minute: int) -> Path:
    """A file of our own archives: zstd, int16."""
    write_part(schema.mock_archive(1, *SHAPE, start=f"2026-01-01T00:{minute:02d}", seed=minute), path)
    return path


def bom(path: Path, minute: int) -> Path:
    return test_bom.write(path, rates(minute) / 12, end=f"2020-10-31T04:{minute:02d}", minutes=5)


def geotiff(path: Path, minute: int) -> Path:
    return test_geotiff.write(path, codes(minute), tags={"TIME": f"2020010112{minute:02d}"}, compress="deflate")


def meteonet(path: Path, minute: int) -> Path:
    test_meteonet.write_coordinates(path.with_name(test_meteonet.NW.name), SHAPE)
    return test_meteonet.write_frames(
        path, codes(minute).astype(np.int16)[None], [datetime(2016, 8, 21, 0, minute)]
    )


def sevir(path: Path, minute: int) -> Path:
    return test_sevir.write_at(path, minute, codes(minute) % 240)


def knmi(path: Path, minute: int) -> Path:
    return knmi_file.write(path, f"2020-01-01T00:{minute:02d}", codes(minute))


def radolan(path: Path, minute: int) -> Path:
    """Small squares on the smallest of DWD's grids, which files state."""
    pixels = np.zeros((900, 900), np.uint16)
    pixels[::30, ::30] = np.random.default_rng(minute).integers(0, 500, (30, 30))
    return test_radolan.write(path, pixels, time=f"1823{minute:02d}1019")


def radolan_bz2(path: Path, minute: int) -> Path:
    path.write_bytes(bz2.compress(radolan(path, minute).read_bytes()))
    return path


def nimrod(path: Path, minute: int) -> Path:
    pixels = codes(minute).astype(np.int16)
    return test_nimrod.write(path, pixels, time=f"2020-02-07T00:{minute:02d}:00")


def nimrod_gz(path: Path, minute: int) -> Path:
    path.write_bytes(gzip.compress(nimrod(path, minute).read_bytes()))
    return path


KINDS: dict[str, tuple[Write, Reader]] = {
    "knmi.h5": (knmi, KNMI()),
    "odim.h5": (odim, ODIM()),
    "odim.tar": (odim_tar, ODIM()),
    "opera.tif": (opera_tiff, OperaTiff()),
    "mch.gif": (gif, MCHGif()),
    "fmi.pgm": (pgm, FMI()),
    "fmi.pgm.gz": (pgm_gz, FMI()),
    "fmi.tif": (tiff, FMI()),
    "mrms.grib2": (grib, MRMS()),
    "mrms.grib2.gz": (grib_gz, MRMS()),
    "netcdf4.nc": (netcdf4, CF()),
    "netcdf3.nc": (netcdf3, CF()),
    "part.nc": (part, CF()),
    "bom.nc": (bom, BoM()),
    "geotiff.tif": (geotiff, GeoTIFF("rate", time_tag="TIME")),
    "meteonet.npz": (meteonet, MeteoNet(quantity="rainfall")),
    "sevir.h5": (sevir, SEVIR()),
    "radolan.bin": (radolan, RADOLAN()),
    "radolan.bz2": (radolan_bz2, RADOLAN()),
    "nimrod.dat": (nimrod, NIMROD()),
    "nimrod.dat.gz": (nimrod_gz, NIMROD()),
}
CHECKED = (".gz", ".bz2")  # a checksum over all of it


@pytest.fixture(scope="module")
def process() -> Iterator[Watched]:
    """One for all kinds: it takes seconds to start."""
    with Watched() as process:
        yield process


def try_all(
    name: str, path: Path, process: Watched, function: Callable[..., str], *arguments: object
) -> Counter[tuple[str, str]]:
    """Call for each damaged copy of `path`, in a process that may die; what became of how many."""
    outcomes: Counter[tuple[str, str]] = Counter()
    failures = []
    whole = path.with_name(f"whole-{path.name}")
    replace(path, whole.read_bytes())
    assert process.call(function, *arguments, loads=True) == "same"
    for number, (kind, content) in enumerate(damaged(whole, NUM)):
        replace(path, content)
        try:
            outcome = process.call(function, *arguments)
        except (Died, AssertionError) as error:
            failures.append(f"{number} ({kind}): {error}")
            continue
        outcomes[kind, outcome] += 1
        wrong = kind in ("cut", "empty") or name.endswith(CHECKED)
        if wrong and outcome == "other":
            failures.append(f"{number} ({kind}): another frame than before went into the archive")
    sys.stdout.write(f"{name} {dict(sorted(outcomes.items()))}\n")  # shown by pytest -rP
    assert not failures, f"{len(failures)} of {NUM}, the first: {failures[0]}\n" + "\n".join(
        text.strip().splitlines()[-1][:300] for text in failures
    )
    assert outcomes["empty", "refused"] == 1 and outcomes.total() == NUM
    return outcomes


@pytest.mark.timeout(max(300, 3 * NUM))
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_among_good_ones(tmp_path: Path, process: Watched, name: str) -> None:
    write, reader = KINDS[name]
    # fewer, and one on another grid would stop the ingest
    good = [write(tmp_path / f"good-{minute}.{name}", minute) for minute in (5, 15, 20)]
    path = tmp_path / f"damaged.{name}"
    whole = write(path.with_name(f"whole-{path.name}"), 10)
    np.save(tmp_path / "frame.npy", np.minimum(reader.read(whole, step_minutes=5)[schema.RAIN].values[0], 300))
    try_all(name, path, process, ingest_with, reader, good, path, tmp_path / "out", tmp_path / "frame.npy")


@pytest.mark.parametrize(
    "name", [name for name in KINDS if not name.startswith(("netcdf", "part", "radolan", "nimrod"))]
)
def test_any_damage_reads_or_is_a_value_error(tmp_path: Path, name: str) -> None:
    write, reader = KINDS[name]
    path = write(tmp_path / f"a.{name}", 10)
    head = 4096 if name.endswith((".h5", ".nc")) else 512
    assert check_reads_or_names(reader, path, spoilt(path.read_bytes(), head=head)) > 40


@pytest.mark.timeout(max(300, 3 * NUM))
def test_a_damaged_file_of_an_archive(tmp_path: Path, process: Watched) -> None:
    path = tmp_path / "2026-01-01.nc"
    whole = tmp_path / f"whole-{path.name}"
    write_part(schema.mock_archive(20, *SHAPE), whole)
    archive = Archive.open(whole)
    np.save(tmp_path / "frames.npy", archive.read(0, archive.num_times))
    assert open_as_archive(whole, tmp_path / "frames.npy") == "same"
    try_all("archive", path, process, open_as_archive, path, tmp_path / "frames.npy")


def test_every_truncation_of_netcdf3_is_refused(tmp_path: Path) -> None:
    """The netCDF library reads zeros beyond the end, which would be no rain."""
    content = netcdf3(tmp_path / "whole.nc", 10).read_bytes()
    assert CF().read(tmp_path / "whole.nc")[schema.RAIN].shape == (1, *SHAPE)
    for length in [*range(8, len(content), 97), *range(len(content) - 9, len(content))]:
        path = tmp_path / f"{length}.nc"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{length}\.nc cannot be read as CF netCDF"):
            CF().scan(path)


def test_negative_codes_of_an_archive_are_missing(tmp_path: Path) -> None:
    import netCDF4

    path = part(tmp_path / "a.nc", 0)
    with netCDF4.Dataset(path, "a") as file:
        file.set_auto_maskandscale(False)
        file[schema.RAIN][0, 5, 5:7] = [-1, 7]
    rain = Archive.open(path).read(0, 1)[0, 5, 5:7]
    np.testing.assert_array_equal(rain, np.float32([np.nan, 0.07]))


def test_a_damaged_chunk_of_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "2026-01-01.nc"
    write_part(schema.mock_archive(8, 200, 200), path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    archive = Archive.open(path)
    for read in (archive.read, archive.read_codes):
        with pytest.raises(ValueError, match=r"2026-01-01\.nc cannot be read: .*remove it and ingest its frames"):
            read(0, 8)
