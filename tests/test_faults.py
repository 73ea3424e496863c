"""A full disk, no more handles and no memory are named as what they are; whole files are not called damaged."""

import errno
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import netCDF4
import numpy as np
import pytest
import torch

from raincast import schema
from raincast.archive import Archive, write_part
from raincast.export.files import write_torch
from raincast.ingest.readers import Auto, Reader
from raincast.ingest.readers.cf import CF
from raincast.system import faults
from raincast.system.faults import MachineError, naming_disk, raise_if_handles, reason_of
from raincast.system.files import atomic

FEW_HANDLES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from raincast.archive import Archive
for path in sys.argv[1:]:
    archive = Archive.open(path)
    for number in [*range(archive.num_times), *range(archive.num_times)]:
        assert archive.read(number, 1).shape == (1, 6, 7)
        archive.read_codes(number, 1)
    print(len(archive.parts))
"""


def test_sixty_files_are_read_with_forty_handles(tmp_path: Path) -> None:
    """Files that we wrote and files of others, an archive of each."""
    (tmp_path / "theirs").mkdir()
    for day in range(60):
        time = np.datetime64("2026-01-01") + np.timedelta64(day, "D")
        frames = schema.mock_archive(1, 6, 7, start=f"{time}T00:00").drop_vars(schema.MISSING_TIMES)
        write_part(frames, tmp_path / "ours" / f"{time}.nc")
        frames.to_netcdf(tmp_path / "theirs" / f"{time}.nc")
    command = [sys.executable, "-c", FEW_HANDLES, str(tmp_path / "ours"), str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["60", "60"]


@pytest.fixture
def no_handles() -> "object":
    """As many handles as are open, and not one more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, limits[1]))  # noqa: PTH208
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for handle in taken:
        os.close(handle)


@pytest.mark.parametrize("how", ["archive", "cf", "auto"])
def test_a_whole_file_is_not_called_damaged_where_handles_ran_out(
    tmp_path: Path, request: pytest.FixtureRequest, how: str
) -> None:
    path = tmp_path / "2026-01-01.nc"
    write_part(schema.mock_archive(3), path)
    readers: dict[str, Reader] = {"cf": CF()}
    Archive.open(path)  # what is imported on the way is imported
    request.getfixturevalue("no_handles")
    with pytest.raises(MachineError, match=r"No more files can be opened.*not damaged.*ulimit -n") as raised:
        if how == "archive":
            Archive.open(path)
        else:
            (CF() if how == "cf" else Auto(readers)).scan(path)
    assert raised.value.errno == errno.EMFILE
    assert pickle.loads(pickle.dumps(raised.value)).errno == errno.EMFILE


def test_handles_that_hdf5_states_in_its_text_are_understood() -> None:
    with pytest.raises(MachineError):
        raise_if_handles(OSError("Unable to open file (errno = 24, error message = 'Too many open files')"))
    raise_if_handles(ValueError("truncated file: eof = 96"))


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes no more; where tmpfs may be mounted, a real one of 64 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        monkeypatch.setattr(faults.os, "fsync", _no_room)
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _no_room(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _write_much(path: Path) -> None:
    with atomic(path) as partial:
        with netCDF4.Dataset(partial, "w") as file:
            file.createDimension("x", 200_000)
            file.createVariable("a", "f8", ("x",))[:] = 1.0
        raise RuntimeError("NetCDF: HDF error")


def test_an_export_to_a_full_disk_is_an_error_and_no_abort(full: Path) -> None:
    """torch's own writer ends the process where it cannot write."""
    if not full.is_mount():
        pytest.skip("it takes the right to mount a small disk")
    program = torch.export.export(torch.nn.Linear(200, 200), (torch.zeros(1, 200),))
    with pytest.raises(MachineError, match="No space left"), atomic(full / "a.pt2", keep_suffix=True) as partial:
        write_torch(SimpleNamespace(program=program), partial)  # type: ignore[arg-type]


def test_a_full_disk_is_named_whatever_the_library_says(full: Path) -> None:
    with pytest.raises(
        MachineError, match=rf"^{full} cannot be written to: No space left on device, on the disk at"
    ):
        _write_much(full / "a.nc")
    assert not list(full.iterdir())
    with pytest.raises(MachineError, match="No space left"):
        write_part(schema.mock_archive(300, 90, 90), full / "2026-01-01.nc")
    assert not list(full.iterdir())


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="HDF error"), naming_disk(tmp_path):
        raise RuntimeError("NetCDF: HDF error")


def test_reasons_in_words() -> None:
    assert reason_of(ValueError("wrong")) is None
    memory = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough memory: you"
    )
    assert str(reason_of(memory)).startswith("There is not enough memory: [enforce")
    assert str(reason_of(MemoryError())) == "There is not enough memory: none is left"
    wrapped = RuntimeError("NetCDF: HDF error")
    wrapped.__cause__ = OSError(errno.EROFS, "Read-only file system", "/data/a.nc")
    assert "Read-only file system: '/data/a.nc'" in str(reason_of(wrapped))
