"""What `evaluate.py` leaves: one page that a browser opens from disk, and rows for other programs."""

import html.parser
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from browser import look_at
from markupsafe import Markup
from running import compose_config, undrawn

from raincast.archive import Archive
from raincast.commands.evaluate import run as evaluate
from raincast.commands.evaluation_outputs import scores_by
from raincast.data.windows import window_starts

FORECASTERS = ["network", "persistence", "extrapolation"]


@pytest.fixture(autouse=True)
def only_the_page() -> Iterator[None]:
    with undrawn(page=True):
        yield


class Page(html.parser.HTMLParser):
    """What a page would load, and whether its tags are closed."""

    EMPTY = ("meta", "img", "input", "polyline", "rect", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe")
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("evaluation")
    checkpoint = f"checkpoint={tiny_run}/checkpoints/best.ckpt"
    few = [
        "metrics.thresholds=[1,50]",
        "baselines=[persistence,extrapolation]",
        "data.eval_stride=4",
        "resamples=40",
    ]
    with undrawn(page=True):
        evaluate(compose_config("evaluate", run_dir, checkpoint, "calibrate=true", "device=cpu", *few))
    return run_dir


def test_the_page_holds_everything_itself(written: Path, tiny_run: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(source.startswith(("data:image/", "#s")) for source in page.sources)
    assert all("alt" in picture for picture in page.pictures)
    for heading in ("Scores", "Against lead time", "Events on maps", "Performance", "Training and data"):
        assert f">{heading}</a>" in text and f"<h2>{heading}</h2>" in text
    with xr.open_dataset(written / "scores.nc") as scores:
        assert str(scores.attrs["checkpoint_sha256"]) in text
        assert scores.attrs["wall_seconds"] > 0 and scores.attrs["peak_memory_gib"] > 0.1
        assert f"{scores.attrs['peak_memory_gib']:.2f} GiB" in text
        assert "persistence 0" in scores.attrs["cpu_seconds_per_window"]  # seconds, below 1
        csi = float(scores["csi"].sel(forecaster="network", threshold=1).mean("lead_time"))
        assert f">{csi:.3f}<" in text
    assert str(written / "calibrated.ckpt") in text and "hidden_channels: 8" in text  # of the config


def test_events_and_hours_have_scores_made_of_their_own_sums(written: Path) -> None:
    with xr.open_dataset(written / "scores.nc") as scores:
        for dim, prefix in (("event", "sum_"), ("hour", "hourly_")):
            made = scores_by(scores, dim)
            hits, misses, false = (
                scores[f"{prefix}{name}"].sum("lead_time").astype(float)
                for name in ("hits", "misses", "false_alarms")
            )
            xr.testing.assert_allclose(made["csi"], hits / (hits + misses + false))
            xr.testing.assert_allclose(made["frequency_bias"], (hits + false) / (hits + misses))
            np.testing.assert_array_equal(made["wet"], (hits + misses).sel(forecaster="network"))
            assert made["num_windows"].sum() == scores.attrs["num_windows"] and "rmse" in made


def test_a_browser_shows_it_without_errors_or_a_network_and_the_slider_moves(
    written: Path, tmp_path: Path
) -> None:
    seen = look_at(
        written / "report.html",
        tmp_path,
        """
        const event = document.querySelector(".event"), slider = event.querySelector("input");
        const frames = [...event.querySelectorAll(".map img")], windows = [...event.querySelectorAll(".map")];
        const steps = [];
        const note = () => steps.push({
            text: event.querySelector("output").textContent,
            spoken: slider.getAttribute("aria-valuetext"),
            frame: frames.map((frame, k) => Math.round(
                (windows[k].getBoundingClientRect().top - frame.getBoundingClientRect().top)
                / windows[k].clientHeight)),
        });
        note();
        for (const value of [0, 3]) {
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
            note();
        }
        event.querySelector("button").click();
        return {steps, playing: event.querySelector("button").textContent, maps: frames.length,
                broken: [...document.images].filter((image) => image.naturalWidth === 0).length,
                images: document.images.length};
        """,
    )
    assert seen["problems"] == [] and seen["broken"] == 0 and seen["images"] > 5
    assert seen["asked"] == []
    assert seen["maps"] == 1 + len(FORECASTERS)
    start, newest, last = seen["steps"]
    assert [set(step["frame"]) for step in (start, newest, last)] == [{2}, {0}, {3}]
    assert "newest input" in newest["text"] and "+15 min" in last["text"] and last["spoken"] == last["text"]
    assert seen["playing"] == "stop"


def test_rows_are_the_scores(written: Path) -> None:
    frame = pd.read_csv(written / "scores.csv", keep_default_na=False)
    with xr.open_dataset(written / "scores.nc") as scores:
        csi = scores["csi"].load()
        names = {str(name) for name in scores.data_vars if not str(name).startswith(("sum_", "hourly_"))}
        names = {name for name in names if "forecaster" in scores[name].dims}
        names = {name for name in names if not name.endswith(("_interval", "_better"))}
        low = scores["csi_interval"].load()[0]
    assert set(frame["score"]) == names and list(frame.columns[:4]) == [
        "forecaster",
        "score",
        "threshold",
        "lead_time",
    ]
    rows = frame[frame["score"] == "csi"]
    assert len(rows) == csi.size
    for row in rows.itertuples():
        value = float(
            csi.sel(forecaster=row.forecaster, threshold=float(row.threshold), lead_time=float(row.lead_time))
        )
        assert row.value == ("nan" if np.isnan(value) else f"{value:.6g}")
        if row.low:
            at = {
                "forecaster": row.forecaster,
                "threshold": float(row.threshold),
                "lead_time": float(row.lead_time),
            }
            assert float(row.low) == pytest.approx(float(low.sel(at)), rel=1e-5)
    assert (frame[frame["score"] == "mae"]["threshold"] == "").all()


def test_a_page_that_asks_for_more_is_found_out(tmp_path: Path) -> None:
    """What the test above relies on: a script that fails, and a picture from elsewhere, are told."""
    from raincast.plotting.page import Rendered, Section, write_page

    outside = Markup('<img alt="" src="https://example.invalid/a.png"><script>throw Error("broken")</script>')
    page = write_page(tmp_path / "a.html", title="a", sections=[Section("a", [Rendered(outside)])])
    (tmp_path / "browser").mkdir()
    seen = look_at(page, tmp_path / "browser", "return {};")
    assert any("broken" in problem for problem in seen["problems"])
    assert any("example.invalid" in problem for problem in seen["problems"])


def test_compare_sets_runs_beside_each_other(written: Path, tmp_path: Path) -> None:
    """Of one run with fewer baselines: the network is the same, and stands once."""
    with xr.open_dataset(written / "scores.nc") as scores:
        other = scores.load().sel(forecaster=["network", "persistence"], reference=["network", "persistence"])
    changed = other.copy(deep=True)
    changed["sum_hits"].loc[{"forecaster": "network"}] //= 2
    changed["sum_misses"].loc[{"forecaster": "network"}] = (
        other["sum_hits"] + other["sum_misses"] - changed["sum_hits"]
    ).sel(forecaster="network")
    (tmp_path / "worse").mkdir()
    changed.to_netcdf(tmp_path / "worse" / "scores.nc")
    run_dir = tmp_path / "compared"
    both = f"compare=[{written}/scores.nc,{tmp_path}/worse]"
    joined = evaluate(compose_config("evaluate", run_dir, both, "resamples=40"))
    first, second = f"network ({written.name})", "network (worse)"
    assert joined["forecaster"].values.tolist() == [first, second, "persistence", "extrapolation"]
    assert (joined["csi_mean"].sel(forecaster=first) >= joined["csi_mean"].sel(forecaster=second)).sel(threshold=1)
    assert {path.name for path in run_dir.iterdir()} >= {"scores.nc", "scores.csv", "scores.txt", "report.html"}
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    Page(text)
    assert f"{first} minus" in text and "worse/scores.nc" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare=[a.nc]"], r"compare=\['a.nc'\]: give two or more"),
        (["compare=[no.nc,neither.nc]"], "There is no no.nc"),
        (["compare=[no.nc,no.nc]"], "names a file twice"),
        (["compare=[a.nc,b.nc]", "checkpoint=x.ckpt"], "leave checkpoint=x.ckpt out"),
        ([], "Not given: data.archive"),
        (["checkpoint=null"], "Not given: data.archive"),
    ],
)
def test_compare_refuses_what_it_cannot_set_side_by_side(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(compose_config("evaluate", tmp_path, *overrides))


def test_baselines_are_scored_without_a_network(tiny_archive: Path, tmp_path: Path) -> None:
    """And any forecaster that Python can import."""
    few = [f"data.archive={tiny_archive}", "default_data.input_steps=3", "default_data.lead_steps=6"]
    few += ["checkpoint=null"]
    few += ["data.eval_stride=6", "resamples=40", "metrics.thresholds=[0.5,1]", "workers=1"]
    own = ["+baseline.standing._target_=forecasting.standing.Standing", "baselines=[standing,persistence]"]
    scores = evaluate(compose_config("evaluate", tmp_path / "run", *few, *own))
    assert scores["forecaster"].values.tolist() == ["standing", "persistence"]
    assert "checkpoint" not in scores.attrs and scores.attrs["num_windows"] > 3
    np.testing.assert_array_equal(scores["csi"][0], scores["csi"][1])  # both are the newest frame
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    Page(text)
    assert "The network" not in text and "BlockSplit" in text
    with pytest.raises(ValueError, match="Without checkpoint=… there is no network"):
        evaluate(compose_config("evaluate", tmp_path / "none", *few, "baselines=[]"))


def test_an_archive_of_test_days_alone_is_enough(tiny_run: Path, tmp_path: Path) -> None:
    """Not so for fitting probabilities, which takes validation windows."""
    from raincast.synthetic import build_builtin_archive

    build_builtin_archive(tmp_path / "event", num_days=1, frames_per_day=12, size=32)
    alone = ["split=all"]
    alone += [f"data.archive={tmp_path}/event", "data.eval_stride=1", "resamples=40", "metrics.thresholds=[1]"]
    alone += [f"checkpoint={tiny_run}/checkpoints/best.ckpt", "baselines=[]", "device=cpu"]
    scores = evaluate(compose_config("evaluate", tmp_path / "run", *alone))
    archive = Archive.open(tmp_path / "event")
    assert scores.attrs["num_windows"] == window_starts(archive.times, archive.step, 6).size > 0
    assert scores.sizes["event"] == 1
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The only event" in text and "Evaluation on all windows of event" in text
    with pytest.raises(ValueError, match="no window of 6 frames for val"):
        evaluate(compose_config("evaluate", tmp_path / "fit", *alone, "calibrate=true"))
