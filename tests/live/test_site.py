"""The page and forecast.json: what they say of places, that nothing unknown is called dry, what stays in the folder."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from browser import browser, look_at
from PIL import Image

from raincast import schema
from raincast.forecasting.files.dataset import MISSING, forecast_dataset, with_exceedance, with_quality
from raincast.forecasting.files.locations import Location
from raincast.live import Site
from raincast.live.outlook import VERSION, Located, outlook
from raincast.plotting import rain_image

INIT = np.datetime64("2026-01-31T12:00", "ns")
LEADS, SIZE = 4, 20


def forecast(rain: np.ndarray | None = None, init_time: np.datetime64 = INIT) -> xr.Dataset:
    """Four leads of 5 minutes: from the second on it rains in the western half, in the last no more."""
    if rain is None:
        rain = np.zeros((LEADS, SIZE, SIZE), np.float32)
        rain[1:3, :, : SIZE // 2] = 2.0
    grid = schema.grid_of(schema.mock_archive(1, SIZE, SIZE))
    made = forecast_dataset(
        rain, init_time=init_time, step_minutes=5.0, grid=grid, cell_methods="time: point",
        attrs={"forecast_method": "network", "missing_input_frames": "none", "input_source": "<script>"},
    )  # fmt: skip
    flags = np.where(np.isnan(rain), MISSING, 0).astype(np.uint8)
    chance = np.repeat(np.where(rain > 0, 0.8, 0.1).astype(np.float32)[:, None], 2, axis=1)
    chance[np.isnan(rain)[:, None].repeat(2, axis=1)] = np.nan
    return with_exceedance(with_quality(made, flags), chance, (0.5, 5.0))


def place(row: int, column: int, name: str = "a") -> Location:
    from pyproj import Transformer

    grid = schema.grid_of(forecast())
    lon, lat = Transformer.from_crs(grid.crs_wkt, "EPSG:4326", always_xy=True).transform(
        grid.x[column], grid.y[row]
    )
    return Location(name, (lon, lat))


def said_of(made: xr.Dataset, newest: np.ndarray | None, row: int, column: int) -> dict[str, Any]:
    located = Located.of(place(row, column), schema.grid_of(made))
    said: dict[str, Any] = outlook(made, newest, [located])["places"][0]
    return said


DRY = np.zeros((SIZE, SIZE), np.float32)


def test_what_is_said_of_a_place() -> None:
    said = said_of(forecast(), DRY, 3, 2)
    assert said["state"] == "rain" and said["rain_in_minutes"] == 10 and said["rain_until_minutes"] == 20
    assert said["rain_from"] == "2026-01-31T12:10:00Z" and said["rain_until"] == "2026-01-31T12:20:00Z"
    assert said["rate_mm_h"] == [0, 2, 2, 0] and said["observed_mm_h"] == 0
    assert (
        said["probability"] == {"0.5": [0.1, 0.8, 0.8, 0.1], "5": [0.1, 0.8, 0.8, 0.1]} and said["chance"] == 0.8
    )
    dry = said_of(forecast(), DRY, 3, SIZE - 2)
    assert dry["state"] == "dry" and dry["rain_in_minutes"] is None and dry["chance"] == 0.1


def test_nothing_unknown_is_called_dry_and_ends_no_rain() -> None:
    rain = forecast()[schema.RAIN].values.copy()
    rain[3] = np.nan
    said = said_of(forecast(rain), DRY, 3, 2)
    assert said["rain_in_minutes"] == 10 and said["rain_until"] is None and said["quality"][3] == ["missing"]
    assert said_of(forecast(rain), DRY, 3, SIZE - 2)["state"] == "unknown"
    assert said_of(forecast(), np.full_like(DRY, np.nan), 3, SIZE - 2)["state"] == "unknown"
    assert said_of(forecast(), None, 3, SIZE - 2)["state"] == "dry"  # nobody says what is now: of the leads alone
    assert said_of(forecast(), DRY + 1, 3, SIZE - 2)["rain_in_minutes"] == 0
    outside = Located.of(Location("far", (-150.0, 10.0)), schema.grid_of(forecast()))
    assert outlook(forecast(), DRY, [outside])["places"][0]["state"] == "outside"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    places = [place(3, 2, "</script><b>x"), Location("far", (-150.0, 10.0))]
    return Site(tmp_path / "site", places=places, coastlines=False)


def show(site: Site, init_time: np.datetime64 = INIT, absent: int | None = 2) -> dict[str, Any]:
    """Put a forecast on the page with an hour of frames, one of them absent; what the page is given."""
    made = forecast(init_time=init_time)
    site.folder.mkdir(exist_ok=True)
    file = site.folder.parent / "made.nc"
    made.to_netcdf(file)
    step = np.timedelta64(5, "m")
    past = {init_time - n * step: DRY for n in range(5) if n != absent}
    csi = {"forecast": [0.5, 0.25], "persistence": [0.4, None], "extrapolation": [0.45, 0.2], "sprog": [0.44, 0.1]}
    skill = {"hours": 24, "comparisons": 7, "threshold_mm_h": [0.5, 5], "mean_csi": csi}
    site.update(made, past, file=file, skill=skill)
    script = (site.folder / "forecast.js").read_text()
    match = re.fullmatch(r"raincastForecast\((.*)\);\n", script)
    assert match is not None and "<" not in script
    content: dict[str, Any] = json.loads(match[1])
    return content


def test_the_folder_holds_all_that_the_page_names(site: Site) -> None:
    content = show(site)
    public = json.loads((site.folder / "forecast.json").read_text())
    assert public == {name: value for name, value in content.items() if name != "page"}
    assert public["version"] == VERSION and [p["name"] for p in public["places"]] == ["</script><b>x", "far"]
    frames = content["page"]["frames"]
    assert [f["lead_minutes"] for f in frames] == [None] * 5 + [5, 10, 15, 20]
    # the frame that did not come is there as such
    assert [f["rate"] is None for f in frames] == [n == 2 for n in range(9)]
    names = [f["rate"] for f in frames if f["rate"]] + [n for f in frames for n in f.get("chance", {}).values()]
    for name in names:
        with Image.open(site.folder / name) as image:
            assert image.mode == "P" and list(image.size) == content["page"]["size"][::-1]
    assert content["page"]["dots"][1] is None and all(0 < share < 1 for share in content["page"]["dots"][0])
    assert not list(site.folder.rglob("*.partial"))
    page = (site.folder / "index.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert sum(path.stat().st_size for path in site.folder.rglob("*")) < 5e6


def test_maps_show_rates_missing_and_dry(site: Site) -> None:
    rain = forecast()[schema.RAIN].values.copy()
    rain[1, :, -1] = np.nan
    made = forecast(rain)
    made.to_netcdf(site.folder.parent / "made.nc")
    site.update(made, {INIT: DRY}, file=site.folder.parent / "made.nc", skill=None)
    with Image.open(site.folder / "maps" / "forecast_20260131T1200_010.png") as image:
        pixels = np.asarray(image)
    assert set(np.unique(pixels)) == {0, rain_image.rain_classes(np.float32([2]))[0], rain_image.MISSING_CLASS}


LOOK = """
  const seen = () => ({
    newest: by("newest").textContent, age: by("age").textContent, head: by("head").className, when: by("when").textContent,
    picture: by("picture").getAttribute("src"), none: by("none").hidden ? "" : by("none").textContent,
    places: by("places").innerText, skill: by("skill").innerText, state: by("state").textContent, bold: document.querySelectorAll("b").length,
  });
  const move = (place) => { by("slider").value = place; by("slider").dispatchEvent(new Event("input")); };
  const first = seen();
  move(6); const later = seen();
  by("what").value = "5"; by("what").dispatchEvent(new Event("change")); const chance = seen();
  move(2); const absent = seen();
  let next = JSON.parse(JSON.stringify(data));
  next.init_time = "2020-01-01T00:00:00Z"; next.missing_input_frames = "2019-12-31T23:55";
  raincastForecast(next); const changed = seen();
  next = JSON.parse(JSON.stringify(next));
  // the same forecast as time goes by: it rains at the second and third of four lead times
  const real = Date.now, said = {};
  next.init_time = "2020-01-01T12:00:00Z"; next.page.stale_minutes = null;
  next.valid_times = ["05", "10", "15", "20"].map((minute) => `2020-01-01T12:${minute}:00Z`);
  next.method = "extrapolation";
  for (const minute of [-30, 1, 12, 16, 21]) {
    Date.now = () => Date.parse("2020-01-01T12:00:30Z") + 60000 * minute;
    raincastForecast(JSON.parse(JSON.stringify(next)));
    showAge();  // as the timer does
    said[minute] = {...seen(), first: by("places").rows[0].cells[1].innerText, title: document.title};
  }
  next.places[0].rate_mm_h[2] = null;
  Date.now = () => Date.parse("2020-01-01T12:01:30Z");
  raincastForecast(JSON.parse(JSON.stringify(next)));
  const unknown = by("places").rows[0].cells[1].innerText;
  Date.now = real;
  return {first, later, chance, absent, changed, said, unknown, wide: document.documentElement.scrollWidth - innerWidth};
"""


def test_the_page_in_a_browser(site: Site) -> None:
    browser()
    now = np.datetime64("now", "m")
    init_time = (now - np.timedelta64(int(now.astype(int)) % 5, "m")).astype("datetime64[ns]")
    show(site, init_time)
    seen = look_at(site.folder / "index.html", site.folder, LOOK)
    assert seen["problems"] == [] and all(name.startswith("file://") for name in seen["asked"])
    clock = str(init_time)[11:16]
    first, later, chance, absent, changed = (
        seen[name] for name in ("first", "later", "chance", "absent", "changed")
    )
    assert first["newest"] == f"{clock} UTC" and first["head"] == "" and "min ago" in first["age"]
    assert "observed" in first["when"] and first["picture"].startswith("maps/observed_")
    # from now on, and the frame is of the last five minutes
    assert (
        re.search(r"rain in ([2-9]|10) min, until about \d\d:\d\d, 80 %", first["places"]) and first["bold"] == 0
    )
    assert "outside" in first["places"]
    assert "S-PROG\t0.44\t0.10" in first["skill"] and "persistence\t0.40\t–" in first["skill"]
    assert "forecast +10 min" in later["when"] and later["picture"].endswith("_010.png")
    assert chance["picture"].endswith("_010_p5.png")
    assert absent["none"] == "no data came for this time" and absent["picture"] is None
    # a new forecast, by the function that the script calls: without a reload, and stale
    assert changed["newest"] == "00:00 UTC" and changed["head"] == "stale"
    assert "STALE" in changed["state"] and "did not come: 23:55" in changed["state"]
    # no place is called dry, or wet, by data that are old
    assert "not known: no data since 00:00" in changed["places"] and "rain in" not in changed["places"]
    assert seen["wide"] <= 0
    said = seen["said"]
    assert said["1"]["first"] == "rain in 9 min, until about 12:20, 80 %" and said["1"]["head"] == "poor"
    assert said["12"]["first"] == "rain now, until about 12:20, 80 %"
    assert seen["unknown"] == "rain in 9 min, not known from 12:15, 80 %"
    # rain that has passed, a forecast that is over, a frame of the future
    assert said["16"]["first"] == "rain now, until about 12:20, 80 %"
    assert said["21"]["first"].startswith("not known") and said["21"]["head"] == "stale"
    assert said["-30"]["head"] == "stale" and "30 min ahead of this clock" in said["-30"]["age"]
    assert "clock" in said["-30"]["state"] and said["-30"]["title"].startswith("STALE")


def test_old_maps_go_and_late_frames_come(site: Site) -> None:
    show(site)
    first = set((site.folder / "maps").iterdir())
    content = show(site, INIT + np.timedelta64(5, "m"), absent=None)
    assert [f["rate"] is None for f in content["page"]["frames"]] == [False] * 10
    assert first < set((site.folder / "maps").iterdir())
    show(site, INIT + np.timedelta64(4, "h"))
    assert not first & set((site.folder / "maps").iterdir())
