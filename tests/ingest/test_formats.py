"""All formats together: each file is told by its content, refused by the readers of the others, and by the configs."""

import dataclasses
import gzip
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import knmi_file
import netCDF4
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
import yaml
from spoiling import check_reads_or_names, spoilt

from raincast import schema
from raincast.ingest.readers import Auto, Reader
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
from raincast.ingest.readers.plugin import Plugin
from raincast.ingest.readers.polar import Polar
from raincast.ingest.readers.radolan import RADOLAN
from raincast.ingest.readers.sevir import SEVIR

CONF = Path(__file__).parents[2] / "conf/source"
READERS: dict[str, Reader] = {
    "polar": Polar(),
    "knmi": KNMI(),
    "odim": ODIM(),
    "mch_gif": MCHGif(),
    "fmi": FMI(),
    "mrms": MRMS(),
    "radolan": RADOLAN(),
    "nimrod": NIMROD(),
    "bom": BoM(),
    "sevir": SEVIR(),
    "meteonet": MeteoNet(),
    "opera_tiff": OperaTiff(),
    "plugin": Plugin(),
    "geotiff": GeoTIFF(),
    "cf": CF(),
}


def write_cf(path: Path) -> Path:
    schema.mock_archive(num_times=2).to_netcdf(path, engine="netcdf4")
    return path


def write_nexrad(path: Path, zipped: bool = False) -> Path:
    content = b"AR2V0006.001" + bytes(100)
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def write_cfradial(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = "CF/Radial instrument_parameters"
        file.create_dataset("range", data=np.arange(3.0)).make_scale("range")
    return path


WRITERS: list[tuple[str, Callable[[Path], Path]]] = [
    ("polar", lambda path: test_odim.write(path, kind="PVOL")),
    ("polar", write_nexrad),
    ("polar", lambda path: write_nexrad(path, zipped=True)),
    ("polar", write_cfradial),
    ("knmi", knmi_file.write),
    ("odim", test_odim.write),
    ("odim", test_odim_services.write_tar),
    ("mch_gif", test_mch_gif.write),
    ("fmi", test_fmi.write_pgm),
    ("fmi", lambda path: test_fmi.write_pgm(path, zipped=True)),
    ("fmi", test_fmi.write_tiff),
    ("opera_tiff", test_opera_tiff.write),
    ("geotiff", test_geotiff.write),
    ("mrms", test_mrms.write),
    ("radolan", test_radolan.write),
    ("radolan", test_radolan.write_tar),
    ("nimrod", test_nimrod.write),
    ("nimrod", test_nimrod.write_tar),
    ("bom", test_bom.write),
    ("sevir", test_sevir.write),
    ("meteonet", test_meteonet.write),
    ("cf", write_cf),
]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_each_file_has_one_reader_and_the_others_say_why_not(
    tmp_path: Path, name: str, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "a.bin")
    recognised = [other for other, reader in READERS.items() if reader.recognises(path)]
    assert recognised[0] == name and set(recognised) <= {name, "cf"}
    for other, reader in READERS.items():
        if other != name:
            for call in (reader.scan, reader.read):
                with pytest.raises(ValueError, match=r"a\.bin"):
                    call(path)
    if name != "polar":
        auto = Auto(READERS | {"geotiff": GeoTIFF("rate", time_tag="TIME")})  # it must be told what it reads
        assert auto.read(path, step_minutes=5)[schema.RAIN].sizes[schema.TIME] >= 1


@pytest.mark.parametrize("name", READERS)
def test_nothing_at_all(tmp_path: Path, name: str) -> None:
    beginnings = [b"", b"\x1f\x8b", b"no radar", b"GRIB", b"GIF89a", b"P5\n", b"II*\0", b"\x89HDF\r\n\x1a\n"]
    for number, content in enumerate(beginnings):
        (tmp_path / f"{number}.bin").write_bytes(content)
    for path in (
        *(tmp_path / f"{number}.bin" for number in range(len(beginnings))),
        tmp_path / "no.bin",
        tmp_path,
    ):
        is_gif = path.is_file() and path.read_bytes() == b"GIF89a"
        assert not READERS[name].recognises(path) or (name == "mch_gif" and is_gif), path
        for call in (READERS[name].scan, READERS[name].read):
            with pytest.raises(ValueError, match=path.name):
                call(path)


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz"])
def test_what_is_packed_and_not_read_so_is_to_be_unpacked(tmp_path: Path, mode: str) -> None:
    """KNMI and BoM publish days and years of single files in one."""
    single = write_cf(tmp_path / "a.nc")
    path = tmp_path / "day.bin"
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.write(single, "a.nc")
    else:
        test_odim_services.pack(path, {"a.nc": single.read_bytes()}, mode)
    with pytest.raises(
        ValueError, match=r"day\.bin \(\d+ bytes of a (zip|tar): unpack it first\) is none of the formats"
    ):
        Auto(READERS).scan(path)


def write_cfradial3(path: Path) -> Path:
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        file.Conventions = "CF/Radial instrument_parameters"
        file.createDimension("time", 3)
        file.createVariable("azimuth", "f4", ("time",))[:] = [0, 1, 2]
    return path


def with_bytes(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content.ljust(400, b"\0"))
        return path

    return write


POLAR = {
    "NEXRAD level 2": write_nexrad,
    "NEXRAD level 3": with_bytes(b"SDUS53 KDMX 010005\r\r\nN0RDMX\r\r\n\x00\x13"),
    "CfRadial": write_cfradial,
    "CfRadial in netCDF-3": write_cfradial3,
    "ODIM HDF5, object SCAN": lambda path: test_odim.write(path, kind="SCAN"),
    "SIGMET IRIS RAW": with_bytes(b"\x1b\0\x08\0".ljust(12, b"\0") + b"\x1a\0".ljust(12, b"\0") + b"\x0f\0"),
    "Rainbow": with_bytes(b'<volume version="5.34.16" datetime="2013-05-10T00:00:06" type="vol">'),
    "DWD DX": with_bytes(b"DX021655109080608BY54213VS 2CO0CD2CS0EP0.30.40.40.40.50.8"),
}


@pytest.mark.parametrize("kind", POLAR)
def test_polar_files_are_refused_with_the_way_to_grid_them(tmp_path: Path, kind: str) -> None:
    path = POLAR[kind](tmp_path / "a.bin")
    named = re.escape(kind.removesuffix(" in netCDF-3"))
    for reader in (Polar(), Auto(READERS)):
        for call in (reader.scan, reader.read):
            with pytest.raises(ValueError, match=rf"a\.bin \({named}\) holds rays.*source=cf"):
                call(path)
    with pytest.raises(ValueError, match=r"b\.nc is not a polar file that raincast knows: use source=auto"):
        Polar().scan(write_cf(tmp_path / "b.nc"))
    assert check_reads_or_names(Polar(), path, spoilt(path.read_bytes(), num=10)) > 0


@pytest.mark.parametrize("name", READERS)
def test_the_yaml_of_each_source_names_every_argument(name: str) -> None:
    reader: Any = type(READERS[name])
    keys = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    assert keys.pop("_target_") == f"{reader.__module__}.{reader.__name__}"
    assert reader(**keys) == reader()
    assert set(keys) == {field.name for field in dataclasses.fields(reader)}


def test_auto_composes_from_the_other_sources_in_this_order() -> None:
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(CONF.parent), version_base=None):
        config = compose(
            overrides=["+source=auto", "source.readers.cf.variable=R", "source.readers.odim.quantity=DBZH"]
        )
    auto = instantiate(config.source)
    assert isinstance(auto, Auto)
    assert dict(auto.readers) == READERS | {"cf": CF(variable="R"), "odim": ODIM(quantity="DBZH")}
    assert list(auto.readers) == list(READERS)
