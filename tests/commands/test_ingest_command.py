"""`ingest.py inspect=` (lines, a page that needs nothing else, maps of clutter) and `ingest.py audit=`."""

import base64
import html.parser
import io
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from PIL import Image
from running import REPO, compose_config, run_forked

from raincast import assembly, schema
from raincast.archive import Archive, write_part
from raincast.commands import ingest
from raincast.schema import RAIN, mock_archive


class Page(html.parser.HTMLParser):
    """What a page would load, what it shows, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe")
        addresses = [str(value) for name, value in attrs if name in ("src", "href")]
        self.sources += [address for address in addresses if not address.startswith("#")]  # of the page itself
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for number in range(3):
        mock = schema.mock_archive(24, 40, 50, start=f"2026-01-0{number + 1}", missing=(5,), seed=number)
        mock[schema.RAIN].values[:, 20:] *= 0.02
        mock[schema.RAIN].values[:, 7, 9] = 50.0
        mock.attrs["title"] = "<b>rain & more</b>"
        mock.to_netcdf(tmp_path / f"{number}.nc", engine="netcdf4")
    ingest.run(
        compose_config(
            "ingest", tmp_path / "i", f"files={tmp_path}/*.nc", f"archive={tmp_path}/out", "max_rate=40"
        )
    )
    return tmp_path / "out"


def test_the_command(archive: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in archive.iterdir()}
    done = run_forked(tmp_path, "ingest", f"inspect={archive}", "report=page.html")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in archive.iterdir()} == before
    found = Archive.open(archive)
    lines = {
        name.strip(): value for name, value in re.findall(r"^  (.{2,}?)  +(\S.*)$", done.stderr, re.MULTILINE)
    }
    assert lines["first"] == "2026-01-01 00:00 UTC" and lines["frames"] == "69 in 3 files"
    assert lines["missing"].startswith(f"{found.missing_times.size} of ")
    assert lines["capped pixels"] == str(sum(_capped(path) for path in archive.glob("*.nc"))) != "0"
    assert lines["largest"].startswith("40.00 mm/h")
    assert lines["2026-01"].endswith("in 69 frames")
    assert lines["pixels (y × x)"] == "40 × 50 of 1 × 1 km" and lines["max_rate"] == "40"
    assert "\npage  page.html\nmaps  page.nc\n" in done.stderr and (tmp_path / "page.nc").exists()


def _capped(path: Path) -> int:
    with xr.open_dataset(path) as dataset:
        return int(dataset.attrs["capped_pixels"])


def test_the_page_needs_nothing_else(archive: Path, tmp_path: Path) -> None:
    path = ingest.inspect_archive(compose_config("ingest", tmp_path / "run", f"inspect={archive}"))
    assert path == tmp_path / "run/inspection.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.sources) == 3 and "<b>rain & more</b>" in page.texts  # told, not obeyed
    for source in page.sources:
        head, _, png = source.partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            assert (
                image.format == "PNG"
                and len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
            )


def test_clutter_of_an_archive_is_taken_from_its_maps(archive: Path, tmp_path: Path) -> None:
    """The round trip: a pixel that is always wet, among rain that is not."""
    page = ingest.inspect_archive(compose_config("ingest", tmp_path / "run", f"inspect={archive}"))
    with xr.open_dataset(page.with_suffix(".nc")) as maps:
        share = maps[schema.WET_SHARE].values
        rain = Archive.open(archive).read(0, 69)
        np.testing.assert_allclose(share, np.where(np.isnan(rain).all(0), np.nan, (rain > 0.1).mean(0)), atol=1e-6)
        assert maps.attrs["num_frames"] == 69
    clutter = [f"clutter_maps={page.with_suffix('.nc')}", "clutter_share=0.99"]
    new = tmp_path / "clean"
    ingest.run(compose_config("ingest", tmp_path / "j", f"files={tmp_path}/*.nc", f"archive={new}", *clutter))
    clean = Archive.open(new).read(0, 69)
    lost = np.isnan(clean).all(axis=0) & ~np.isnan(rain).all(axis=0)
    assert lost[7, 9] and lost.sum() == (share > 0.99).sum()
    np.testing.assert_array_equal(clean[:, ~lost], np.where(np.isnan(rain), np.nan, rain)[:, ~lost])


@pytest.mark.parametrize("kind", ["one.nc", "one.zarr"])
def test_single_files_and_stores(kind: str, tmp_path: Path) -> None:
    mock = schema.mock_archive(6, 1, 7)  # a row: one pixel high
    if kind.endswith("nc"):
        write_part(mock, tmp_path / kind)
    else:
        mock.drop_vars(schema.MISSING_TIMES).to_zarr(tmp_path / kind)
    path = ingest.inspect_archive(compose_config("ingest", tmp_path / "run", f"inspect={tmp_path / kind}"))
    page = Page(path.read_text(encoding="utf-8"))
    assert "not recorded" in page.texts  # neither settings nor capped pixels
    assert any("No window of 18" in text for text in page.texts)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["inspect=nowhere"], "nowhere does not exist"),
        (["inspect=a", "files=b"], "leave out files"),
        (["inspect=a", "report=page.pdf"], r"report=page\.pdf is an HTML page"),
        (["archive=a"], r"Not given: files\. .*inspect=data/NAME"),
        ([], "Not given: archive, files"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        ingest.run(compose_config("ingest", tmp_path, *overrides))


def test_windows_are_those_of_the_default_config() -> None:
    config = yaml.safe_load((REPO / "conf/data/radar.yaml").read_text(encoding="utf-8"))
    assert (config["input_steps"], config["lead_steps"]) == (ingest.INPUT_STEPS, ingest.LEAD_STEPS)
    assert {"split": "blocks"} in config["defaults"]


def test_an_archive_is_audited_with_given_windows(tiny_archive: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        ingest.run(
            compose_config("ingest", tmp_path, f"audit={tiny_archive}", "data.input_steps=3", "data.lead_steps=3")
        )
    assert "No frame is in two splits; the nearest are" in caplog.text
    assert "the same as in checkpoints trained with these settings" in caplog.text


def test_a_checkpoint_is_audited_with_its_own(tiny_run: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        ingest.run(compose_config("ingest", tmp_path, f"audit={tiny_run}/checkpoints/last.ckpt"))
    assert "the same as in the checkpoint" in caplog.text


def test_a_changed_archive_is_told(
    tiny_run: Path, tiny_archive: Path, tmp_path: Path, caplog, monkeypatch
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(tiny_archive, grown)
    archive = Archive.open(grown)
    more = mock_archive(6, *archive.grid.shape, start=str(archive.times[-1] + 20 * archive.step))
    more = more.assign_coords(archive.grid.to_coords())
    more[RAIN].attrs["cell_methods"] = archive.meaning.cell_methods
    write_part(more, grown / "z.nc")
    monkeypatch.setattr(assembly, "archive_path", lambda *_, **__: grown)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as stopped:
        ingest.run(compose_config("ingest", tmp_path, f"audit={tiny_run}/checkpoints/last.ckpt"))
    assert stopped.value.code == 1
    assert "its archive or its split has changed" in caplog.text
