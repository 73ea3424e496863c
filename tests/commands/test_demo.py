"""The first thing a newcomer sees: `python forecast.py` without input."""

import logging
import re
from pathlib import Path

import pytest
from PIL import Image
from running import compose_config

from raincast.commands import forecast


def test_the_event_in_the_box_is_forecast_better_than_by_extrapolation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "raincast"):
        written = forecast.run(compose_config("forecast", tmp_path, "animation=false"))
    assert written.name == "forecast_20160711T2145.nc"
    with Image.open(tmp_path / "observed.png") as picture:
        assert min(picture.size) > 500
    scores = {
        name: [float(score) for score in found.split()]
        for name, found in re.findall(
            r"^  (raincast|extrapolation|persistence) +([\d. ]+)$", "\n".join(caplog.messages), re.MULTILINE
        )
    }
    assert set(scores) == {"raincast", "extrapolation", "persistence"}
    for ours, theirs in zip(scores["raincast"], scores["extrapolation"], strict=True):
        assert ours > theirs
    assert "Source: MeteoSwiss" in caplog.text
