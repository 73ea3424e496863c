"""Damaged copies of a file: what a broken download, a full disk or a bad sector leaves."""

import functools
import multiprocessing
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checking import check_encoded

from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers import Reader
from raincast.schema import RAIN


def spoilt(content: bytes, *, seed: int = 0, head: int = 512, num: int = 20) -> Iterator[bytes]:
    """`num` truncations, `num` flipped bytes, half of them in the first `head`; nothing, zeros, noise."""
    rng = np.random.default_rng(seed)
    yield b""
    for length in rng.integers(1, len(content), num):
        yield content[:length]
    for bound in (min(head, len(content)), len(content)):
        for place in rng.integers(0, bound, num // 2):
            yield content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :]
    for start in rng.integers(0, len(content), 5):
        yield content[:start] + bytes(len(content[start : start + 64])) + content[start + 64 :]
    yield content[:8] + rng.bytes(len(content) - 8)
    yield rng.bytes(len(content))


def check_reads_or_names(reader: Reader, path: Path, copies: Iterator[bytes]) -> int:
    """Read each of the damaged copies at `path`: it works, or is a ValueError that names the file; how many were."""
    num_refused = 0
    for content in copies:
        replace(path, content)
        assert reader.recognises(path) in (True, False)
        for call in (reader.scan, lambda p: reader.read(p, step_minutes=5)):
            try:
                call(path)
            except ValueError as error:
                assert path.name in str(error), error
                num_refused += 1
    return num_refused


def damaged(path: Path, num: int, *, seed: int = 0, head: int = 512) -> Iterator[tuple[str, bytes]]:
    """`num` damaged copies of the file `path`, each with the name of its damage.

    `cut` and `empty` are broken downloads, `flip` is one other byte, `zeros` 64 of them, `type` a value of the
    file's header that is of another type or size than it should be.
    """
    rng = np.random.default_rng(seed)
    content = path.read_bytes()
    is_hdf5 = content.startswith(b"\x89HDF")
    yield "empty", b""
    for number in range(num - 1):
        kind = ("cut", "flip", "type", "cut", "flip", "zeros")[number % 6]
        # every other one near the begin, where the words are, the rest of it is data
        place = int(rng.integers(0, min(head, len(content)) if number % 2 == 0 else len(content)))
        if kind == "cut":
            yield kind, content[: max(1, place)]
        elif kind == "flip":
            yield (
                kind,
                content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :],
            )
        elif kind == "zeros":
            yield kind, content[:place] + bytes(len(content[place : place + 64])) + content[place + 64 :]
        elif is_hdf5:
            yield kind, _with_other_value(path, rng)
        else:
            yield kind, _with_other_word(content, rng, head)


def _with_other_value(path: Path, rng: np.random.Generator) -> bytes:
    """An HDF5 or netCDF-4 file with one attribute or dataset of another type, shape or size."""
    import h5py

    values = ["", "x", b"\xff\xfe", np.nan, -1, 0, 1e300, 2**31 - 1, [1, 2, 3], [], ["a", "b"], h5py.Empty("f4")]
    value = values[rng.integers(len(values))]
    copy = path.with_name("copy.spoilt")
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "a") as file:
        nodes = [file]
        file.visititems(lambda _, node: nodes.append(node))
        attrs = [
            (node, name) for node in nodes for name in node.attrs if not name.startswith(("REF", "DIM", "_N"))
        ]
        datasets = [node for node in nodes if isinstance(node, h5py.Dataset)]
        chosen = int(rng.integers(len(attrs) + len(datasets)))
        if chosen < len(attrs):
            node, name = attrs[chosen]
            del node.attrs[name]
            if rng.random() < 0.8:  # else it is gone
                node.attrs[name] = value
        else:
            dataset = datasets[chosen - len(attrs)]
            name, kept = dataset.name, dict(dataset.attrs)
            del file[name]
            new = file.create_dataset(name, data=value)
            new.attrs.update({k: v for k, v in kept.items() if k not in ("DIMENSION_LIST", "REFERENCE_LIST")})
    return copy.read_bytes()


def _with_other_word(content: bytes, rng: np.random.Generator, head: int) -> bytes:
    """A file with other text or an extreme number somewhere in its first `head` bytes."""
    if rng.random() < 0.5:
        words = [b"", b"x", b"-1", b"0", b"nan", b"1e99", b"99999999999", b"\xff\xfe", b"stereographic"]
        parts = content[:head].split(b" ")
        parts[rng.integers(len(parts))] = words[rng.integers(len(words))]
        return b" ".join(parts) + content[head:]
    size = int(rng.choice([1, 2, 4, 8]))
    place = int(rng.integers(0, min(head, len(content) - size)))
    extreme = (bytes(size), b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), b"\x80" + bytes(size - 1))
    return content[:place] + extreme[rng.integers(4)] + content[place + size :]


def replace(path: Path, content: bytes) -> None:
    """A new file: HDF5 cannot close some damaged ones, and would take the old one's state for the new content."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


class Died(Exception):
    """The process of a `Watched` crashed or hung."""


class Watched:
    """Calls functions in a process of its own, for files that might crash or hang the interpreter."""

    def __init__(self, gibibytes: int = 6) -> None:
        self.limit = gibibytes * 2**30
        self._process: Any = None

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def call(self, function: Callable[..., Any], *args: Any, loads: bool = False) -> Any:
        """What `function` returns; Died where it takes more than 10 seconds or its process ends.

        It may take 120 seconds where it `loads` libraries, as it does in a new process.
        """
        if self._process is None:
            self._start()
            loads = True
        seconds = 120 if loads else 10
        self._pipe.send((function, args))
        if not self._pipe.poll(seconds):
            self._end()
            raise Died(f"no answer in {seconds} s")
        try:
            failed, result = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._end()
            raise Died(f"the process ended with code {code}") from None
        if failed:
            raise AssertionError(result)
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.limit), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(60) and self._pipe.recv() == "ready"

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any, limit: int) -> None:
    import resource

    import raincast.ingest  # noqa: F401  # what takes seconds counts for no file

    # a size out of a spoilt header shall be an error here, not the end of all
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send("ready")
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((False, function(*args)))
        except BaseException:
            pipe.send((True, traceback.format_exc()))


def ingest_with(reader: Reader, good: list[Path], path: Path, out: Path, frame: Path) -> str:
    """What becomes of the damaged file `path` among good ones: refused, same, other, or stopped.

    `frame` is a .npy file of what `path` held before. Asserts that its error names it, that its frames are
    plausible, and that the good frames are in the archive as they are without it.
    """
    expected = np.load(frame)
    assert reader.recognises(path) in (True, False)
    for call in (reader.scan, lambda p: reader.read(p, step_minutes=5)):
        try:
            call(path)
        except ValueError as error:
            assert path.name in str(error), f"not named: {error}"
    shutil.rmtree(out, ignore_errors=True)
    half = len(good) // 2
    try:
        report = ingest([*good[:half], path, *good[half:]], out, reader)
    except ValueError as error:
        # another grid or step than the others': nothing is written, and the file is named
        assert path.name in str(error), f"not named: {error}"
        assert not list(out.glob("*.nc"))
        return "stopped"
    archive = Archive.open(out)
    rain = archive.read(0, archive.num_times)
    assert ((rain >= 0) & (rain <= 300) | np.isnan(rain)).all()
    times, reference = _frames_of(reader, tuple(good))
    own = set() if str(path) in report.bad_files else set(reader.scan(path).times)
    for time, values in zip(times, reference, strict=True):
        number = int(np.searchsorted(archive.times, time))
        assert archive.times[number] == time, f"the good frame of {time} is lost"
        if time not in own:
            check_encoded(rain[number], np.minimum(values, 300))
    num_others = archive.num_times - len(good)
    if not num_others:
        return "refused"
    there = np.flatnonzero(~np.isin(archive.times, times))
    between = times[half - 1] < archive.times[there[0]] < times[half]
    same = num_others == 1 and between and np.allclose(rain[there[0]], expected, atol=0.0101, equal_nan=True)
    return "same" if same else "other"


@functools.lru_cache(maxsize=1)
def _frames_of(reader: Reader, good: tuple[Path, ...]) -> tuple[list[np.datetime64], np.ndarray]:
    """Times and rates (mm/h) of files of one frame that stay as they are while others are damaged."""
    times = [reader.scan(file).times[0] for file in good]
    return times, np.stack([reader.read(file, step_minutes=5)[RAIN].values[0] for file in good])


def open_as_archive(path: Path, frame: Path) -> str:
    """What becomes of a damaged file of an archive: refused, same or other."""
    from raincast.archive.statistics import measure

    try:
        archive = Archive.open(path)
        rain = archive.read(0, archive.num_times)
        coverage = archive.coverage
        measure(archive)
    except ValueError as error:
        assert path.name in str(error), f"not named: {error}"
        return "refused"
    assert rain.shape == (archive.num_times, *archive.grid.shape)
    assert coverage is None or coverage.shape == archive.grid.shape
    assert not (rain < 0).any() and not np.isinf(rain).any(), "implausible rates"
    expected = np.load(frame)
    return "same" if rain.shape == expected.shape and np.array_equal(rain, expected, equal_nan=True) else "other"
