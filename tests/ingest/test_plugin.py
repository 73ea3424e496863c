"""Readers of other packages: found by entry point, used by name, and broken in every way there is."""

import logging
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from running import compose_config, run_script

from raincast import assembly, schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers import Auto, plugin
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.plugin import Plugin

READER = '''
    """A format of one line: TXT, minutes after midnight, a rate."""
    from pathlib import Path
    import numpy as np
    from raincast import schema
    from raincast.ingest.readers import Head

    class Txt:
        def __init__(self, factor=1.0):
            self.factor = factor

        def recognises(self, path):
            return Path(path).read_bytes()[:4] == b"TXT "

        def _line(self, path):
            _, minutes, rate = Path(path).read_text().split()
            return np.array(["2026-01-01"], "datetime64[ns]") + np.timedelta64(int(minutes), "m"), float(rate)

        def scan(self, path):
            return Head(self._line(path)[0], schema.mock_grid(4, 3), 5.0)

        def read(self, path, frames=slice(None), *, step_minutes=None):
            times, rate = self._line(path)
            rain = np.full((1, 4, 3), rate * self.factor, np.float32)
            return schema.rain_dataset(rain[frames], times[frames], schema.mock_grid(4, 3), step_minutes=5,
                                       cell_methods="time: point")
'''
Install = Callable[..., Path]


def install_into(site: Path, package: str, source: str, **entries: str) -> None:
    """A package as pip leaves it: its module, and a dist-info with its entry points."""
    site.mkdir(exist_ok=True)
    (site / f"{package}.py").write_text(textwrap.dedent(source))
    info = site / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[raincast.readers]", *lines]) + "\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package for this test: install("mypkg", source, myformat="mypkg:MyReader")."""
    site, before = tmp_path / "site", set(sys.modules)
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def forget() -> None:
        plugin._entries.cache_clear()
        plugin._all.cache_clear()
        plugin._warn_once.cache_clear()

    def put(package: str, source: str, **entries: str) -> Path:
        install_into(site, package, source, **entries)
        forget()
        return site

    yield put
    forget()
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"TXT {5 * number} {number}.5")
    return tmp_path


def auto() -> Auto:
    return Auto({"plugin": Plugin(), "cf": CF()})


def test_auto_finds_the_reader_of_another_package(install: Install, files: Path) -> None:
    install("plug_a", READER, txt="plug_a:Txt")
    ingest(files / "*.txt", files / "out", auto())
    archive = Archive.open(files / "out")
    np.testing.assert_array_equal(archive.read(0, 4)[:, 0, 0], [0.5, 1.5, 2.5, 3.5])
    assert archive.attrs["reader"] == "the reader txt = plug_a:Txt of plug_a 1.2"


def test_by_name_with_arguments_and_in_worker_processes(install: Install, files: Path) -> None:
    install("plug_b", READER, txt="plug_b:Txt")
    (files / "5.txt").write_text("TXT 1500 1")  # the next day: two tasks
    reader = Plugin("txt", {"factor": 2.0})
    ingest(files / "*.txt", files / "out", reader, workers=2)
    np.testing.assert_array_equal(Archive.open(files / "out").read(0, 5)[:, 0, 0], [1, 3, 5, 7, 2])
    with pytest.raises(ValueError, match=r"arguments\.factor: 2\.0 in the archive, 3\.0 now"):
        ingest(files / "*.txt", files / "out", Plugin("txt", {"factor": 3.0}))
    assert pickle.loads(pickle.dumps(reader)) == reader
    (files / "0.txt").write_text("TXT nonsense")
    with pytest.raises(ValueError, match=r"0\.txt cannot be read as the reader txt = plug_b:Txt of plug_b 1\.2: "):
        reader.scan(files / "0.txt")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_that_exists", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("x = 1", "AttributeError"),
        ("class Txt:\n  def __init__(self, needed): ...", "needed"),
        ("class Txt:\n  def scan(self, path): ...", "no method recognises or read"),
    ],
)
def test_a_broken_package_is_named_and_left_out(
    install: Install, tmp_path: Path, source: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    install("plug_c", source, broken="plug_c:Txt")
    schema.mock_archive(4).to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    with caplog.at_level(logging.WARNING):
        ingest(tmp_path / "a.nc", tmp_path / "out", auto())
    assert Archive.open(tmp_path / "out").num_times == 4
    told = [r.message for r in caplog.records if "broken" in r.message]
    assert len(told) == 1 and words in told[0] and "broken = plug_c:Txt of plug_c 1.2 is broken" in told[0]
    with pytest.raises(ValueError, match=rf"source\.name=broken: .*plug_c 1\.2 is broken: .*{words}"):
        Plugin("broken")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("def recognises(self, path): 1 / 0", "fails at recognising"),
        ("def scan(self, path): return 5", "scan returned int"),
        ("def scan(self, path): return Head(np.arange(3), schema.mock_grid(4, 3), 5.0)", "datetime64"),
        ("def scan(self, path): raise KeyError('what')", "'what'"),
        ("def read(self, path, frames=None, *, step_minutes=None): return None", "read returned NoneType"),
        (
            "def read(self, path, frames=None, *, step_minutes=None):\n"
            "        return schema.mock_archive(1, 4, 3).rename(rain_rate='r')",
            "rain_rate",
        ),
        (
            "def read(self, path, frames=None, *, step_minutes=None):\n"
            "        return schema.mock_archive(1, 4, 3).transpose('y', 'time', 'x', ...)",
            "rain_dataset",
        ),
    ],
)
def test_wrong_answers_cost_the_file_only(
    install: Install, files: Path, method: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = textwrap.dedent(READER) + f"\nclass Wrong(Txt):\n    {method}\n"
    install("plug_d", source, wrong="plug_d:Wrong")
    schema.mock_archive(3, 4, 3).to_netcdf(files / "a.nc", engine="netcdf4")
    report = ingest([files / "a.nc", files / "3.txt"], files / "out", auto())
    # a .txt that nobody recognises is taken for a note beside the data, and the reader's fault is in the log
    left_out = [*report.bad_files, *report.accompanying]
    assert report.num_written == 3 and left_out == [str(files / "3.txt")]
    assert words in str(report.bad_files) + caplog.text


def test_names_that_are_not_there(install: Install, files: Path) -> None:
    with pytest.raises(ValueError, match=r"source\.name=txt: no installed package.*declared: none"):
        Plugin("txt")
    with pytest.raises(ValueError, match=r"0\.txt is recognised by no reader .*none is installed.*source=auto"):
        Plugin().scan(files / "0.txt")
    install("plug_e", READER, txt="plug_e:Txt")
    with pytest.raises(ValueError, match=r"source\.name=text: .*declared: txt"):
        Plugin("text")
    with pytest.raises(ValueError, match=r"source\.arguments=\{'factor': 2\} are for one reader"):
        Plugin(arguments={"factor": 2})


def test_by_config(install: Install, tmp_path: Path) -> None:
    install("plug_f", READER, txt="plug_f:Txt")
    config = compose_config("ingest", tmp_path, "source=plugin", "source.name=txt", "+source.arguments.factor=2.0")
    assert assembly.make(config.source) == Plugin("txt", {"factor": 2.0})
    readers = list(assembly.make(compose_config("ingest", tmp_path).source).readers)
    # after our own special formats, before what any TIFF and any netCDF is
    assert readers[-3:] == ["plugin", "geotiff", "cf"]


def test_the_command_finds_an_installed_package(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_into(tmp_path / "site", "plug_g", READER, txt="plug_g:Txt")
    install_into(tmp_path / "site", "plug_h", "import nothing_that_exists", other="plug_h:Txt")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = run_script(tmp_path, "ingest", "files=*.txt", "archive=out")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("other = plug_h:Txt of plug_h 1.2 is broken and left out: ModuleNotFound") == 1
    assert Archive.open(tmp_path / "out").num_times == 4
