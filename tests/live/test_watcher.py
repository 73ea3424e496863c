"""What becomes of each file that arrives, on a clock of our own."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from checking import check_encoded
from filelock import FileLock
from running import compose_config
from watching import MINUTE, ManualClock, frames_of, time_in_seconds, write_frame

from raincast import assembly
from raincast.forecasting import forecast_name
from raincast.live import Settings, Site, Watcher

Act = Callable[[], Any]


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> Any:
    return assembly.pipeline(assembly.read_checkpoint(tiny_run / "checkpoints" / "best.ckpt"), device="cpu")


@pytest.fixture(scope="module")
def frames(tiny_archive: Path) -> xr.Dataset:
    return frames_of(tiny_archive, 12)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return assembly.make(compose_config("forecast", tmp_path_factory.mktemp("config")).source)


class Scene:
    """A folder that files arrive in, and a watcher that looks once a minute until everything has happened."""

    def __init__(self, folder: Path, frames: xr.Dataset, pipeline: Any, reader: Any) -> None:
        self.incoming, self.output = folder / "incoming", folder / "forecasts"
        self.frames, self.pipeline, self.reader = frames, pipeline, reader
        self.incoming.mkdir()
        self.start = time_in_seconds(frames, 0)
        self.events: list[tuple[float, Act]] = []

    def arrives(self, number: int, after_minutes: float = 1.0, name: str | None = None) -> None:
        """Frame `number`, so long after its time."""
        at = time_in_seconds(self.frames, number) + after_minutes * MINUTE
        self.events.append((at, lambda: write_frame(self.incoming, self.frames, number, name)))

    def at(self, minutes: float, act: Act) -> None:
        """Something that happens so long after the first frame's time."""
        self.events.append((self.start + minutes * MINUTE, act))

    def watch(
        self, minutes: float = 70.0, *, site: Site | None = None, **settings: Any
    ) -> tuple[int, dict[str, Any]]:
        """Exit code and status of a watcher that runs for so long after the first frame's time."""
        until = np.datetime64(round(self.start + minutes * MINUTE), "s")
        own = {"output": self.output, "poll_s": MINUTE, "settle_s": 30.0, "until": str(until), "verify": False}
        clock = ManualClock(self.start - MINUTE, self.events)
        watcher = Watcher(
            self.incoming, self.reader, self.pipeline, Settings(**(own | settings)), clock=clock, site=site
        )
        self.events = []
        code = watcher.run()
        return code, json.loads((self.output / "status.json").read_text())

    @property
    def made(self) -> list[int]:
        """The numbers of the frames that have a forecast."""
        times = self.frames["time"].values
        return [n for n, time in enumerate(times) if (self.output / f"{forecast_name(time)}.nc").exists()]


@pytest.fixture
def scene(tmp_path: Path, frames: xr.Dataset, pipeline: Any, reader: Any) -> Scene:
    return Scene(tmp_path, frames, pipeline, reader)


def test_each_new_file_gets_the_forecast_of_its_time_and_the_status_says_so(scene: Scene) -> None:
    for number in range(5):
        scene.arrives(number)
    code, status = scene.watch(22)
    assert code == 0 and {2, 3, 4} <= set(scene.made)
    path = scene.output / f"{forecast_name(scene.frames['time'].values[4])}.nc"
    whole = scene.pipeline(scene.frames.isel(time=slice(2, 5)).drop_vars("missing_times"))
    with xr.open_dataset(path, decode_timedelta=True) as file:
        check_encoded(file["rain_rate"], whole["rain_rate"])
        assert file.attrs["checkpoint_sha256"] == status["checkpoint_sha256"]
    assert status["state"] == "stopped" and not status["stale"]
    last = status["last_success"]
    assert last["file"] == str(path) and last["in_time"] and last["init_time"] == status["newest_frame"]
    assert status["counts"]["forecast"] == len(scene.made) and status["counts"]["taken"] == 5
    assert status["data_age_s"] == pytest.approx(120, abs=61)  # 22 minutes, the frame is of minute 20
    assert 0 <= status["latency_s"]["last"] <= MINUTE + 30


def test_a_file_is_not_read_before_it_is_complete(scene: Scene) -> None:
    for number in range(3):
        scene.arrives(number)
    path = write_frame(scene.incoming, scene.frames, 3)
    whole = path.read_bytes()
    path.unlink()
    for minute in range(16, 20):  # grows for as long as it takes
        piece = whole[: len(whole) * (minute - 15) // 4]
        scene.at(minute, lambda piece=piece: path.write_bytes(piece))  # type: ignore[misc]
    code, status = scene.watch(25, settle_s=90.0)
    assert code == 0 and 3 in scene.made and "corrupt" not in status["counts"]


def test_a_late_frame_is_forecast_while_it_is_fresh_and_helps_those_after_it(scene: Scene) -> None:
    for number in (0, 1, 2, 4):
        scene.arrives(number)
    scene.arrives(3, after_minutes=12)
    _, status = scene.watch(40)
    assert {2, 3, 4} <= set(scene.made) and status["counts"]["late"] >= 1
    # the newest forecast stays the newest
    assert status["last_success"]["init_time"] == status["newest_frame"]


def test_a_stale_frame_is_never_forecast_from(scene: Scene) -> None:
    for number in (0, 1, 2, 4, 5):
        scene.arrives(number)
    scene.arrives(3, after_minutes=25)
    _, status = scene.watch(60)
    assert 3 not in scene.made and status["counts"]["stale"] == 1 and status["stale"]
    # its observation has come all the same: nothing is lost for those that need it
    assert status["counts"]["taken"] == 6


def test_an_old_folder_makes_no_forecast_unless_any_age_is_allowed(scene: Scene) -> None:
    for number in range(6):
        write_frame(scene.incoming, scene.frames, number)
    scene.start += 24 * 60 * MINUTE
    code, status = scene.watch(1, once=True)
    assert code == 0 and not list(scene.output.glob("*.nc")) and status["stale"]
    _, status = scene.watch(1, once=True, max_age_minutes=None, keep_hours=None, output=scene.output / "all")
    assert {2, 3, 4, 5} <= {
        n
        for n in range(6)
        if (scene.output / "all" / f"{forecast_name(scene.frames['time'].values[n])}.nc").exists()
    }


def test_a_repeated_file_makes_nothing_new(scene: Scene) -> None:
    for number in range(3):
        scene.arrives(number)
    scene.arrives(2, after_minutes=3, name="again.nc")  # under another name
    scene.arrives(2, after_minutes=5)  # in its own place
    _, status = scene.watch(25)
    assert status["counts"]["repeated"] == 2 and status["counts"]["forecast"] == len(scene.made)


def test_an_image_under_a_new_time_is_not_taken_for_new(scene: Scene) -> None:
    for number in range(4):
        scene.arrives(number)
    rain = scene.frames["rain_rate"]
    still = scene.frames.assign(rain_rate=rain.copy(data=np.concatenate([rain[:4].values, rain[3:-1].values])))
    assert (rain[3] > 0).sum() > 10
    scene.at(21, lambda: write_frame(scene.incoming, still, 4))
    _, status = scene.watch(30)
    assert status["counts"]["frozen"] == 1 and 4 not in scene.made and 3 in scene.made
    assert "that of the step before" in status["errors"][-1]["reason"]


def test_a_corrupt_file_is_named_and_forecast_once_it_comes_whole(scene: Scene) -> None:
    for number in range(3):
        scene.arrives(number)
    path = write_frame(scene.incoming, scene.frames, 3)
    whole = path.read_bytes()
    path.unlink()
    scene.at(16, lambda: path.write_bytes(whole[: len(whole) // 2]))
    code, status = scene.watch(26)
    assert code == 3 and 3 not in scene.made and status["counts"]["corrupt"] == 1
    assert str(path) in status["errors"][-1]["what"]
    path.write_bytes(whole)
    os.utime(path, (scene.start, scene.start))
    scene.start += 26 * MINUTE
    code, status = scene.watch(2)
    assert code == 0 and 3 in scene.made


def test_a_file_of_another_grid_or_step_is_refused_with_the_reason(scene: Scene, tmp_path: Path) -> None:
    for number in range(3):
        scene.arrives(number)
    smaller = scene.frames.isel(y=slice(0, 20))
    scene.at(16, lambda: write_frame(scene.incoming, smaller, 3))
    faster = scene.frames.assign_attrs(step_minutes=10.0)
    scene.at(21, lambda: write_frame(scene.incoming, faster, 4))
    code, status = scene.watch(30)
    reasons = " ".join(error["reason"] for error in status["errors"])
    assert code == 3 and status["counts"]["other"] == 2 and not {3, 4} & set(scene.made)
    assert "its grid of (20, 32)" in reasons and "steps of 10 min, the network was trained on 5" in reasons


def test_a_grid_that_changes_for_good_is_taken_once_the_frames_before_are_stale(scene: Scene) -> None:
    """Frames 0 to 2 on one grid, from 3 on (of minute 15) another, of the same size but farther east."""
    moved = scene.frames.assign_coords(x=scene.frames["x"] + 10 * float(np.diff(scene.frames["x"].values[:2])[0]))
    for number in range(3):
        scene.arrives(number)
    for number in range(3, 9):
        scene.at(5 * number + 1, lambda number=number: write_frame(scene.incoming, moved, number))
    code, status = scene.watch(44, verify=True, max_age_minutes=10)
    # frame 2, of minute 10, is fresh up to minute 20: that of minute 15 is refused
    assert status["counts"]["other"] == 1 and status["counts"]["new_grid"] == 1 and code == 3
    assert scene.made == [0, 1, 2, 4, 5, 6, 7, 8]
    with xr.open_dataset(max(scene.output.glob("*.nc"))) as file:
        np.testing.assert_array_equal(file["x"], moved["x"])
        assert file.attrs["missing_input_frames"] == "none"
    # frames 1 and 2 with 1 + 2 forecasts, 5 to 8 with 1 + 2 + 3 + 3; none of 4 and 5 with those of the grid before
    assert status["skill"]["comparisons"] == 12


def test_frames_of_the_future_and_empty_ones_are_not_used(scene: Scene) -> None:
    for number in range(3):
        scene.arrives(number)
    scene.arrives(9, after_minutes=-30)  # minute 15, of minute 45
    empty = scene.frames.assign(rain_rate=scene.frames["rain_rate"] * np.nan)
    scene.at(17, lambda: write_frame(scene.incoming, empty, 3))
    _, status = scene.watch(22)
    assert status["counts"]["future"] == 1 and status["counts"]["empty"] == 1
    assert not {3, 9} & set(scene.made) and 2 in scene.made


def test_frames_that_a_slow_clock_takes_for_the_future_are_forecast_once_it_is_right(scene: Scene) -> None:
    """An hour slow, and set right after 20 minutes: what has come by then is no longer of the future."""
    clock = ManualClock(scene.start - 61 * MINUTE)
    for number in range(5):
        at = time_in_seconds(scene.frames, number) + MINUTE - 3600
        clock.events.append((at, lambda number=number: write_frame(scene.incoming, scene.frames, number)))
    clock.events.append((scene.start + 24 * MINUTE - 3600, lambda: setattr(clock, "time", clock.time + 3600)))
    until = str(np.datetime64(round(scene.start + 28 * MINUTE), "s"))
    own = {"output": scene.output, "poll_s": MINUTE, "settle_s": 30.0, "until": until, "verify": False}
    watcher = Watcher(scene.incoming, scene.reader, scene.pipeline, Settings(**own), clock=clock)
    assert watcher.run() == 0
    assert scene.made == [1, 2, 3, 4]  # frame 0 is of 28 minutes ago
    assert watcher.record.counts["future"] == 5 and watcher.record.counts["taken"] == 5


def test_a_clock_that_is_set_back_keeps_no_file_waiting(scene: Scene) -> None:
    """By ten and a half minutes, while a file settles: it settles by the new time, and is forecast from then on."""
    clock = ManualClock(scene.start - 2 * MINUTE)
    write_frame(scene.incoming, scene.frames, 0)
    clock.events.append((scene.start - MINUTE, lambda: setattr(clock, "time", clock.time - 630)))
    until = str(np.datetime64(round(scene.start - 1.9 * MINUTE), "s"))  # by the old time it settles after that
    own = {"output": scene.output, "poll_s": MINUTE, "settle_s": 45.0, "until": until, "verify": False}
    Watcher(scene.incoming, scene.reader, scene.pipeline, Settings(**own), clock=clock).run()
    assert scene.made == [0]


def test_a_slow_clock_makes_no_old_frame_fresh(scene: Scene) -> None:
    """Half an hour after the frames around it, and two minutes after its own time by a clock that was set back."""
    clock = ManualClock(scene.start - MINUTE)
    for number in (0, 1, 3, 4, 5, 6, 7, 8):
        at = time_in_seconds(scene.frames, number) + MINUTE
        clock.events.append((at, lambda number=number: write_frame(scene.incoming, scene.frames, number)))
    clock.events.append((scene.start + 44 * MINUTE, lambda: setattr(clock, "time", scene.start + 12 * MINUTE)))
    clock.events.append((scene.start + 12 * MINUTE, lambda: write_frame(scene.incoming, scene.frames, 2)))
    until = str(np.datetime64(round(scene.start + 46 * MINUTE), "s"))
    own = {"output": scene.output, "poll_s": MINUTE, "settle_s": 30.0, "until": until, "verify": False}
    watcher = Watcher(scene.incoming, scene.reader, scene.pipeline, Settings(**own), clock=clock)
    assert watcher.run() == 0
    assert scene.made == [0, 1, 3, 4, 5, 6, 7, 8] and watcher.record.counts["stale"] == 1


def test_an_emptied_forecast_is_made_again(scene: Scene) -> None:
    for number in range(4):
        scene.arrives(number)
    scene.watch(17)
    newest = scene.output / f"{forecast_name(scene.frames['time'].values[3])}.nc"
    size = newest.stat().st_size
    newest.write_bytes(b"")
    scene.start += 17 * MINUTE
    scene.watch(2)
    assert newest.stat().st_size == size


class Killed(BaseException):
    """As a kill: nothing catches it."""


def deliver_backlog(scene: Scene) -> None:
    """Five files of a frame, one of two frames and a damaged one."""
    for number in range(5):
        write_frame(scene.incoming, scene.frames, number)
    scene.frames.isel(time=[5, 6]).to_netcdf(scene.incoming / "two.nc")
    (scene.incoming / "damaged.nc").write_bytes(b"CDF")


def work_off(scene: Scene, output: Path, kill_at: int | None = None, when: str = "") -> dict[str, Any]:
    """The counts and scores of a watcher of what is there; Killed at its forecast `kill_at`, before or after it."""
    import raincast.live.watcher as module

    write, left = module.write_outputs, kill_at

    def killing(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left = None if left is None else left - 1
        if left == 0 and when == "before":
            raise Killed
        found = write(*arguments, **keywords)
        if left == 0:
            raise Killed
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_outputs", killing)
        patch.setattr("raincast.live.intake.CHUNK", 2)
        own = {"output": output, "settle_s": 0.5, "poll_s": 1.0, "max_age_minutes": None, "keep_hours": None}
        clock = ManualClock(time_in_seconds(scene.frames, 11))
        settings = Settings(**own, once=True)
        watcher = Watcher(scene.incoming, scene.reader, scene.pipeline, settings, clock=clock)
        watcher.run()
    status = json.loads((output / "status.json").read_text())
    return {key: status[key] for key in ("counts", "skill")} | {"last": status["last_success"]["init_time"]}


def test_a_backlog_that_was_killed_within_ends_with_the_counts_and_scores_of_one_that_was_not(
    scene: Scene, tmp_path: Path
) -> None:
    deliver_backlog(scene)
    whole = work_off(scene, scene.output)
    assert whole["counts"]["forecast"] >= 5 and whole["skill"]["comparisons"] > 5
    for kill_at, when in ((1, "before"), (1, "after"), (4, "before"), (4, "after")):
        output = tmp_path / f"killed {when} {kill_at}"
        with pytest.raises(Killed):
            work_off(scene, output, kill_at, when)
        assert work_off(scene, output) == whole, output.name


def test_a_refused_forecast_ends_in_the_exit_code_however_long_ago_it_was(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames_for, refused = scene.pipeline.frames, scene.frames["time"].values[0]

    def refuse(series: Any, time: Any, **keywords: Any) -> Any:
        if time == refused:
            raise ValueError("its pixels are of another size")
        return frames_for(series, time, **keywords)

    monkeypatch.setattr(scene.pipeline, "frames", refuse)
    for number in range(6):
        scene.arrives(number)
    code, status = scene.watch(28, max_age_minutes=5)
    assert 5 in scene.made and status["counts"]["refused"] == 1
    assert code == 3


def test_a_restart_goes_on_without_repeating(scene: Scene) -> None:
    for number in range(4):
        scene.arrives(number)
    _, before = scene.watch(17, verify=True)
    dates = {path: path.stat().st_mtime_ns for path in scene.output.glob("*.nc")}
    assert scene.made[-1] == 3
    scene.start += 17 * MINUTE
    scene.arrives(4, after_minutes=2)
    _, after = scene.watch(10, verify=True)
    assert all(path.stat().st_mtime_ns == date for path, date in dates.items())
    assert set(scene.made) == {*range(5)} & set(scene.made) and 4 in scene.made
    assert after["counts"]["forecast"] == before["counts"]["forecast"] + len(scene.made) - len(dates)
    assert after["counts"]["taken"] == 5 and "repeated" not in after["counts"]
    # the forecasts from before the restart are scored by what came after it
    assert after["skill"]["comparisons"] > before["skill"]["comparisons"] > 0


def test_a_missed_deadline_is_noted(scene: Scene) -> None:
    for number in range(4):
        scene.arrives(number)
    _, status = scene.watch(20, deadline_s=1.0)  # less than it takes to settle
    assert status["missed_deadlines"]["count"] == len(scene.made) > 0
    assert not status["missed_deadlines"]["last"]["in_time"] and status["latency_s"]["max"] > 1


def test_old_forecasts_are_removed_with_all_their_files(scene: Scene) -> None:
    for number in range(4):
        scene.arrives(number)
    scene.watch(20, keep_hours=1.0)
    assert 3 in scene.made
    stem = scene.output / forecast_name(scene.frames["time"].values[3])
    Path(f"{stem}.gif").write_bytes(b"GIF")
    for folder in (stem, Path(f"{stem}.zarr"), Path(f"{stem}_web")):
        (folder / "own").mkdir(parents=True)
        (folder / "own" / "file").write_bytes(b"GIF")
    others = [scene.output / name for name in ("forecast_0_of_mine", f"{stem.name}12_of_mine", "status.json")]
    for other in others[:2]:
        other.mkdir()
    scene.start += 90 * MINUTE
    scene.watch(2, keep_hours=1.0)
    assert sorted(scene.output.glob("forecast_*")) == sorted(others[:2]) and others[2].exists()


def test_a_signal_ends_it_after_the_forecast_at_hand(
    scene: Scene, pipeline: Any, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write_frame(scene.incoming, scene.frames, number)
    settings = Settings(output=scene.output, settle_s=0.0, max_age_minutes=None, keep_hours=None)
    watcher = Watcher(scene.incoming, reader, pipeline, settings, clock=ManualClock(scene.start + 3600))
    frames_for = pipeline.frames

    def then_stop(*arguments: Any, **keywords: Any) -> Any:
        found = frames_for(*arguments, **keywords)
        watcher.stop.set()
        return found

    monkeypatch.setattr(pipeline, "frames", then_stop)
    assert watcher.run() == 0 and len(scene.made) == 1
    monkeypatch.undo()
    assert json.loads((scene.output / "status.json").read_text())["state"] == "stopped"
    settings = Settings(output=scene.output, settle_s=0.0, max_age_minutes=None, keep_hours=None, once=True)
    assert Watcher(scene.incoming, reader, pipeline, settings, clock=ManualClock(scene.start + 3600)).run() == 0
    assert {2, 3, 4, 5} <= set(scene.made)


def test_what_fails_is_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    import raincast.live.watcher as module

    for number in range(3):
        scene.arrives(number)
    failures = [OSError("No space left on device")] * 2
    write = module.write_outputs

    def full(*arguments: Any, **keywords: Any) -> Any:
        if failures and len(scene.made) == len(list(scene.output.glob("forecast_*.nc"))):
            raise failures.pop()
        return write(*arguments, **keywords)

    monkeypatch.setattr(module, "write_outputs", full)
    code, status = scene.watch(28)
    assert not failures and 2 in scene.made and code == 0 and status["counts"]["failed"] == 1
    assert any("No space left" in error["reason"] for error in status["errors"])


def test_a_page_that_lacks_the_newest_forecast_gets_it(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full for a while, and a run that was killed between a forecast and its page."""
    site = Site(tmp_path / "site", coastlines=False)
    assert site.shown is None
    for number in range(4):
        scene.arrives(number)
    update, failures = Site.update, [OSError(28, "No space left on device")] * 2

    def full(*arguments: Any, **keywords: Any) -> None:
        if failures and len(scene.made) == 2:
            raise failures.pop()
        update(*arguments, **keywords)

    monkeypatch.setattr(Site, "update", full)
    code, status = scene.watch(9.5, site=site)
    newest = time_in_seconds(scene.frames, scene.made[-1])
    assert code == 0 and not failures and len(scene.made) == 2 and site.shown == newest
    assert any("No space left" in error["reason"] for error in status["errors"])
    assert Site(site.folder).shown == newest
    (site.folder / "forecast.js").write_text("raincastForecast({")  # a power cut
    again = Site(site.folder, coastlines=False)
    assert again.shown is None
    scene.start = newest + 3 * MINUTE
    scene.watch(1, site=again)
    assert again.shown == newest and json.loads((site.folder / "forecast.json").read_text())


def test_the_page_has_the_whole_hour_although_forecasts_need_less(scene: Scene, tmp_path: Path) -> None:
    site = Site(tmp_path / "site", coastlines=False)
    for number in (0, 1, 3, 9, 10, 11):
        scene.arrives(number)
    scene.arrives(2, after_minutes=43)  # while no forecast was made, and long after one could need it
    code, _ = scene.watch(58, site=site)
    assert code == 0 and scene.made[-1] == 11 and 2 not in scene.made
    content = json.loads((site.folder / "forecast.js").read_text()[len("raincastForecast(") : -len(");\n")])
    shown = {frame["time"][11:16]: frame["rate"] is not None for frame in content["page"]["frames"]}
    times = np.datetime_as_string(scene.frames["time"].values.astype("datetime64[m]"))
    assert [shown[time[11:16]] for time in times] == [n in (0, 1, 2, 3, 9, 10, 11) for n in range(12)]


def test_an_archive_that_grows_is_watched_too(
    scene: Scene, tiny_archive: Path, pipeline: Any, reader: Any, tmp_path: Path
) -> None:
    from raincast.archive import write_part

    part = scene.incoming / "2026-06-01.nc"
    for count in (3, 5, 6):
        grown = scene.frames.isel(time=slice(0, count)).drop_vars("missing_times")
        scene.at(5 * count - 3, lambda grown=grown: write_part(grown, part))  # type: ignore[misc]
    _, status = scene.watch(35)
    assert {2, 3, 4, 5} <= set(scene.made) and status["counts"]["taken"] == 3
    assert "repeated" not in status["counts"]


def test_two_watchers_of_one_folder_of_forecasts_are_refused(scene: Scene) -> None:
    scene.output.mkdir()
    with (
        FileLock(scene.output / ".watch.lock"),
        pytest.raises(ValueError, match=r"Another watcher .*live\.output"),
    ):
        scene.watch(1)


def test_a_damaged_state_begins_anew(scene: Scene) -> None:
    scene.arrives(0)
    scene.watch(5)
    (scene.output / ".state.json").write_text('{"format": 1, "wat')
    scene.start += 5 * MINUTE
    code, _ = scene.watch(5)
    assert code == 0
    shutil.rmtree(scene.output)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"poll_s": 0}, r"live\.poll_s=0 has to be above 0"),
        ({"settle_s": -1}, r"live\.settle_s=-1"),
        ({"max_age_minutes": 0}, r"live\.max_age_minutes=0"),
        ({"max_age_minutes": None}, r"live\.keep_hours=48 removes .*max_age_minutes=null"),
        ({"max_age_minutes": 300, "keep_hours": 4}, r"Take live\.keep_hours=null"),
        ({"until": "tomorrow"}, r"live\.until=tomorrow: write 2026"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(output=tmp_path, **given)


def test_the_end_is_utc_unless_it_states_an_offset(tmp_path):
    assert Settings(output=tmp_path, until="1970-01-02").until_seconds() == 86400
    assert Settings(output=tmp_path, until="1970-01-01T02:00+02:00").until_seconds() == 0
