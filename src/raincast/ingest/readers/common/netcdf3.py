"""Whether a netCDF-3 file is whole: the netCDF library reads zeros, which are no rain, beyond its end."""

from pathlib import Path

from raincast.ingest.readers import starts_with

SIGNATURES = (b"CDF\x01", b"CDF\x02")  # classic and 64-bit offset; scipy knows no 64-bit data, CDF\x05


def check_whole(path: Path) -> None:
    """ValueError where a netCDF-3 file ends before its last variable; nothing for other files."""
    if not starts_with(path, *SIGNATURES):
        return
    from scipy.io import netcdf_file

    try:
        # mapped: the header is read, and each variable's extent compared with the file's
        file = netcdf_file(path, "r", mmap=True)
    except (ValueError, TypeError, LookupError, AssertionError, OverflowError) as error:
        raise ValueError("its header is damaged, or it ends before its last variable") from error
    file.variables.clear()  # or the map would stay open with them
    file.close()
