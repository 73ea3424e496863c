"""Images and their metadata in ODIM HDF5 files, single or packed in a tar.

Format: EUMETNET OPERA weather radar information model for implementation with the HDF5 file format, versions
2.0.1 (2010) to 2.4 (2021). Comments mark where services deviate from it and the reader follows them.
"""

import io
import re
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raincast.archive.limits import check_image, open_hdf5, read_all
from raincast.ingest.readers import HDF5_SIGNATURE, starts_with
from raincast.ingest.readers.common.axes import CORNERS, grid_between
from raincast.ingest.readers.common.unpack import first_bytes_inside, in_member, unpacked
from raincast.schema import Grid

_HALF_MINUTE = np.timedelta64(30, "s")
_MOST_APART = np.timedelta64(5, "m")


@dataclass(frozen=True, eq=False)
class Image:
    """One data group. Its attributes override those of its dataset, which override those of the file."""

    name: str
    data: Any
    what: Mapping[str, Any]
    where: Mapping[str, Any]
    how: Mapping[str, Any]

    @property
    def quantity(self) -> str:
        """Return the quantity, such as RATE; '' if not stated."""
        return str(self.what.get("quantity", ""))

    @property
    def is_forecast(self) -> bool:
        """Return True if the image is marked as simulated and ends after the nominal time, as DWD's nowcasts."""
        nominal, end = self.time(""), self.time("end")
        is_later = nominal is not None and end is not None and bool(end > nominal)
        return is_later and str(self.how.get("simulated", "")).lower() in ("true", "1")

    def time(self, which: str) -> np.datetime64 | None:
        """Return the time of the attributes `which`date and `which`time, see `stated_time`."""
        return stated_time(self.what, which)

    def grid(self) -> Grid:
        """Return the grid. Sizes default to the shape of the data, because DMI does not state them."""
        if "projdef" not in self.where:
            raise ValueError("where has no projdef: the position of the image is unknown")
        if self.data.ndim != 2:
            raise ValueError(f"{self.name}/data is {self.data.shape}: not an image (y, x)")
        check_image(*self.data.shape)
        corners = tuple(
            (name, float(self.where[f"{name}_lon"]), float(self.where[f"{name}_lat"]))
            for name in CORNERS
            if f"{name}_lon" in self.where and f"{name}_lat" in self.where
        )
        sizes = tuple(
            (int(self.where.get(f"{axis}size", number)), float(self.where.get(f"{axis}scale", 0.0)))
            for axis, number in zip("yx", self.data.shape, strict=True)
        )
        return grid_between(str(self.where["projdef"]), corners, sizes)


def stated_time(what: Mapping[str, Any], which: str) -> np.datetime64 | None:
    """Return the time of the attributes `which`date and `which`time; None if they are absent.

    Some services state the second at which a scan ended: deviations of less than half a minute are rounded.
    """
    exact = _exact_time(what, which)
    if exact is None:
        return None
    minute = (exact + _HALF_MINUTE).astype("datetime64[m]").astype("datetime64[s]")
    stated: np.datetime64 = (minute if abs(exact - minute) < _HALF_MINUTE else exact).astype("datetime64[ns]")
    return stated


def nominal_time(what: Mapping[str, Any], *, is_depth: bool) -> np.datetime64 | None:
    """Return the nominal time (`date`, `time`), else the end of the interval; None if neither is stated.

    Scans end seconds or minutes before or after the nominal time, each by a different amount. The time of a depth
    is the end of its interval; the nominal time replaces it if they are at most 5 min and less than half the
    interval apart.
    """
    nominal, start, end = (stated_time(what, which) for which in ("", "start", "end"))
    if nominal is None or end is None:
        return end if nominal is None else nominal
    apart = abs(end - nominal)
    if is_depth and (apart > _MOST_APART or (start is not None and 2 * apart >= end - start)):
        return end
    return nominal


def scan_attrs(what: Mapping[str, Any], time: np.datetime64) -> dict[str, float]:
    """Return `scan_start_s` and `scan_end_s`, the stated interval in seconds from `time`; empty if not stated."""
    exact = {which: _exact_time(what, which) for which in ("start", "end")}
    return {
        f"scan_{which}_s": float((found - time) / np.timedelta64(1, "s"))
        for which, found in exact.items()
        if found is not None
    }


def _exact_time(what: Mapping[str, Any], which: str) -> np.datetime64 | None:
    date, time = what.get(f"{which}date"), what.get(f"{which}time")
    if date is None or time is None:
        return None
    if not re.fullmatch(r"\d{8}", str(date)) or not re.fullmatch(r"\d{6}", str(time)):
        raise ValueError(f"what/{which}date={date}, {which}time={time} is not a time like 20241126, 010500")
    d, t = str(date), str(time)
    return np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}T{t[:2]}:{t[2:4]}:{t[4:]}", "s")


def is_odim(path: Path, *, without: Collection[str] = ()) -> bool:
    """Return True if `path`, or the first file packed in it, has an ODIM object that is not in `without`."""
    try:
        size = len(HDF5_SIGNATURE)
        if not starts_with(path, HDF5_SIGNATURE) and first_bytes_inside(path, size)[:1] != [HDF5_SIGNATURE]:
            return False
        with h5py_files(path, {0}, checked=False) as files:
            _, _, file = next(files)
            return attributes(file, "what").get("object") not in (None, *without)
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, StopIteration):
        return False


@contextmanager
def h5py_files(
    path: Path, wanted: Container[int] | None = None, *, checked: bool = True
) -> Iterator[Iterator[tuple[int, str, Any]]]:
    """Yield the HDF5 files in `path` as (number, name, file): the file itself, named '', or those packed in it.

    Only the files numbered `wanted` of a tar are opened (None: all). If `checked`, raises ValueError for files
    that exceed `archive.limits`.
    """
    if starts_with(path, HDF5_SIGNATURE):
        with open_hdf5(path, checked=checked) as file:
            yield iter([(0, "", file)])
    else:
        with unpacked(path) as packed:
            yield _unpacked_files(packed, wanted, checked)


def _unpacked_files(
    packed: Iterator[tuple[str, Any]], wanted: Container[int] | None, checked: bool
) -> Iterator[tuple[int, str, Any]]:
    for number, (name, stream) in enumerate(packed):
        if wanted is not None and number not in wanted:
            continue
        with in_member(name):
            content = read_all(stream)
            if not content.startswith(HDF5_SIGNATURE):
                raise ValueError(f"it begins with {content[:8]!r}: not HDF5")
            with open_hdf5(io.BytesIO(content), checked=checked) as file:
                yield number, name, file


def images(file: Any) -> Iterator[Image]:
    """Yield the data groups in the order of their numbers."""
    for dataset in _numbered(file, "dataset"):
        for data in _numbered(file[dataset], "data"):
            groups = (file, file[dataset], file[dataset][data])
            # DMI states the quantity as an attribute of the group itself
            own = {"quantity": _scalar(groups[-1].attrs["quantity"])} if "quantity" in groups[-1].attrs else {}
            what, where, how = (
                {k: v for group in groups for k, v in attributes(group, name).items()}
                for name in ("what", "where", "how")
            )
            if "data" in groups[-1]:
                yield Image(f"{dataset}/{data}", groups[-1]["data"], own | what, where, how)


def attributes(group: Any, name: str) -> dict[str, Any]:
    """Return the attributes of a subgroup as scalars, text as str; empty if there is no such subgroup."""
    return {key: _scalar(value) for key, value in group[name].attrs.items()} if name in group else {}


def _scalar(value: Any) -> Any:
    value = np.ravel(value)[0]
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else value


def _numbered(group: Any, word: str) -> list[str]:
    names = [name for name in group if re.fullmatch(rf"{word}\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix(word)))
