"""`forecast.py watch=…`: keys, signals, what is refused."""

import json
import os
import signal
from pathlib import Path
from threading import Event

import pytest
from running import compose_config

from raincast.commands.forecast import run as forecast
from raincast.commands.serve import stopped_by_signals


def test_watch_forecasts_what_is_there_once(tiny_run: Path, tiny_archive: Path, tmp_path: Path) -> None:
    config = compose_config(
        "forecast", tmp_path, f"checkpoint={tiny_run}/checkpoints/best.ckpt", f"watch='{tiny_archive}/2026-06-03.nc'",
        "live.once=true", "live.settle_s=0", f"live.output={tmp_path}/live", "device=cpu", "animation=false",
        "live.max_age_minutes=null", "live.keep_hours=null", "live.verify=false",
    )  # fmt: skip
    output = forecast(config)
    status = json.loads((output / "status.json").read_text())
    assert status["counts"]["forecast"] == len(list(output.glob("forecast_20260603T*.nc"))) > 20
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.nc")}
    forecast(config)
    assert before == {path: path.stat().st_mtime_ns for path in output.glob("*.nc")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_has_its_usual_effect(number: signal.Signals) -> None:
    stop, usual = Event(), []
    old = signal.signal(number, lambda *_: usual.append(1))
    try:
        with stopped_by_signals(stop):
            os.kill(os.getpid(), number)
            assert stop.is_set() and not usual
            os.kill(os.getpid(), number)
            assert usual == [1]
        os.kill(os.getpid(), number)
        assert usual == [1, 1]
    finally:
        signal.signal(number, old)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["watch=a", "input=b"], "input=b and watch=a: give only one of them"),
        (["watch=a", "init_time=2020-01-01T00:00"], "init_time=2020-01-01T00:00: with watch="),
        (["watch=a", "live.poll_s=0"], r"live\.poll_s=0"),
        (["watch=a", "for_pysteps=true"], r"for_pysteps=true .*live\.verify=false"),
        (["watch=a", "for_pysteps=true", "live.verify=false", "site=b"], "for_pysteps=true .*no site"),
    ],
)
def test_what_does_not_go_together_is_refused(
    overrides: list[str], message: str, tiny_run: Path, tmp_path: Path
) -> None:
    checkpoint = f"checkpoint={tiny_run}/checkpoints/best.ckpt"
    with pytest.raises(Exception, match=message):
        forecast(compose_config("forecast", tmp_path, checkpoint, *overrides))
