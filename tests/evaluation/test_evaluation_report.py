"""The page of an evaluation: a section is there if its scores are, and its figures show what was counted."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from raincast.evaluation import SCORES
from raincast.evaluation.report.event_maps import EventMaps, sprite
from raincast.evaluation.report.html_tables import COLUMNS, Column, difference_tables
from raincast.evaluation.report.page import Evaluation, by_figure, write_report
from raincast.evaluation.report.probabilities import ensembles, rank_counts, reliability_curves, roc_curves
from raincast.plotting.page import Folded, Picture, Table
from raincast.plotting.rain_image import MISSING_CLASS, MapView, rain_classes
from raincast.schema import Grid, find_crs_wkt, mock_archive

NAMES = ["network", "steps <b>"]
LEADS = [5.0, 10.0]
ALWAYS = ["Scores", "Against lead time", "Performance", "Training and data"]
FURTHER = ["Probabilities", "Ensembles", "Scales", "Neighbourhoods, amounts, onsets"]


def scores() -> xr.Dataset:
    lead, by = ("forecaster", "lead_time"), ("forecaster", "threshold", "lead_time")
    rng = np.random.default_rng(0)
    share = {name: (by, rng.uniform(size=(2, 1, 2))) for name in ("csi", "pod", "far", "frequency_bias")}
    rest = {name: (lead, rng.uniform(size=(2, 2))) for name in ("mae", "rmse")}
    return xr.Dataset(
        share | rest, coords={"forecaster": NAMES, "threshold": [1.0], "lead_time": LEADS, "event": ["2026-01-01"]}
    )


def full() -> xr.Dataset:
    forecasts = np.zeros((2, 1, 1, 2, 3), int)
    forecasts[0, ..., :] = [6, 0, 2]  # the network states 10 % of six pixels, 90 % of two, at each lead
    bins = ("forecaster", "event", "threshold", "lead_time", "probability")
    ranks = np.zeros((2, 1, 2, 4), int)
    ranks[1] = [3, 1, 1, 3]
    ones = np.ones((2, 1, 1, 2))
    none, areal = np.full((1, 1, 2), np.nan), ("forecaster", "areal_scale", "lead_time")
    power = np.concatenate([np.full((1, 3, 2), np.nan), np.ones((1, 3, 2))])
    spectrum = ("forecaster", "wavelength", "lead_time")
    return scores().assign(
        sum_probability_forecasts=(bins, forecasts),
        sum_probability_probability=(bins, forecasts * np.array([0.1, 0.5, 0.9])),
        sum_probability_events=(bins, forecasts // [6, 1, 2]),
        sum_ensemble_ranks=(("forecaster", "event", "lead_time", "rank"), ranks),
        crps=(("forecaster", "lead_time"), np.array([[np.nan, np.nan], [0.1, 0.2]])),
        sum_areal_ensemble_ranks=(("forecaster", "event", "areal_scale", "lead_time", "rank"), ranks[:, :, None]),
        areal_crps=(areal, np.concatenate([none, [[[0.05, 0.07]]]])),
        areal_spread_error_ratio=(areal, np.concatenate([none, [[[0.8, 0.9]]]])),
        accumulated_crps=(("forecaster", "accumulation", "lead_time"), np.concatenate([none, [[[np.nan, 0.4]]]])),
        energy_score=(areal, np.concatenate([none, [[[0.1, 0.3]]]])),
        member_spectrum=(spectrum, power),
        member_observed_spectrum=(spectrum, 2 * power),
        pooled_csi=(("forecaster", "pool", "threshold", "lead_time"), 0.5 * ones),
        fss=(("forecaster", "scale", "threshold", "lead_time"), 0.7 * ones),
    ).assign_coords(
        probability=[0.0, 0.5, 1.0], pool=[4], scale=[5.0], areal_scale=[16.0], accumulation=[10.0],
        wavelength=[np.inf, 10.0, 5.0],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "headings"), [(scores(), ALWAYS), (full(), ALWAYS + FURTHER)], ids=["few", "all"]
)
def test_a_section_is_there_if_its_scores_are(data: xr.Dataset, headings: list[str], tmp_path: Path) -> None:
    page = write_report(Evaluation(data, 1.0, facts={"<i>": [("a", "b & c")]}), tmp_path / "a.html", title="x < y")
    text = page.read_text(encoding="utf-8")
    assert [heading for heading in ALWAYS + FURTHER if f"<h2>{heading}</h2>" in text] == headings
    assert "steps &lt;b&gt;" in text and "<b>" not in text.partition("<body>")[2] and "b &amp; c" in text
    assert "data-labels" not in text  # nothing moves without maps


def test_reliability_is_of_what_was_counted() -> None:
    (panel,) = reliability_curves(full()).values()
    assert list(panel) == ["network"]  # the other states no probabilities
    stated, observed, number = panel["network"]
    np.testing.assert_allclose(stated[[0, 2]], [0.1, 0.9])
    np.testing.assert_allclose(observed[[0, 2]], [1 / 6, 1 / 2])
    np.testing.assert_array_equal(number, [12, 0, 4])
    assert np.isnan(stated[1]) and np.isnan(observed[1])


def test_members_stand_side_by_side_in_pixels_boxes_and_sums() -> None:
    """The network has no members, so the table has the other alone; every score that there is has its place."""
    table, _, *pictures, folded, spectra = ensembles(full())
    assert isinstance(table, Table) and [row[0].text for row in table.rows] == ["steps <b>"]
    assert table.columns == ["forecaster", "CRPS mm/h", "CRPS 16 km", "CRPS 10 min, mm", "energy score 16 km"]
    assert [cell.text for cell in table.rows[0][1:]] == ["0.150", "0.060", "0.400", "0.200"]
    assert [picture.alt.partition(" of the ")[0] for picture in pictures if isinstance(picture, Picture)] == [
        "CRPS", "spread / RMSE", "rank histograms"
    ]  # fmt: skip
    assert isinstance(folded, Folded) and len(folded.blocks) == 1
    assert isinstance(spectra, Picture) and "single members" in spectra.alt
    counts = rank_counts(full()["sum_areal_ensemble_ranks"])
    assert list(counts) == ["steps <b>"] and counts["steps <b>"].tolist() == [6, 2, 2, 6]


def test_the_roc_is_of_what_was_counted_at_one_lead_time() -> None:
    data = full()
    assert list(roc_curves(data, 0)["rain ≥ 1 mm/h"]) == ["network"]  # the other states no probabilities
    # at each lead 1 of 6 came where 10 % was stated, and 1 of 2 where 90 %: 2 events, 6 others
    pofd, pod, area = roc_curves(data, 1)["rain ≥ 1 mm/h"]["network"]
    np.testing.assert_allclose(pofd, [0, 1 / 6, 1 / 6, 1])
    np.testing.assert_allclose(pod, [0, 1 / 2, 1 / 2, 1])
    assert area == pytest.approx(1 / 24 + 5 / 6 * 3 / 4)
    data["sum_probability_events"][:, :, :, 0] = 0
    assert np.isnan(roc_curves(data, 0)["rain ≥ 1 mm/h"]["network"][2])  # no event, no ROC
    assert roc_curves(data.sel(forecaster=NAMES[1:]), 0) == {}


@pytest.mark.parametrize("dim", ["event", "hour"])
def test_by_event_and_hour_stand_what_scores_there_are(dim: str, tmp_path: Path) -> None:
    labels, by = [3, 4, 5], ("forecaster", dim, "threshold")
    few = xr.Dataset(
        {"csi": (by, np.full((2, 3, 1), 0.5)), "num_windows": (dim, [4, 2, 0])},
        coords={"forecaster": NAMES, dim: labels, "threshold": [1.0]},
    )
    more = few.assign(
        frequency_bias=few["csi"] * 3,
        rmse=few["csi"].isel(threshold=0, drop=True),
        fss=few["csi"].expand_dims(scale=[1.0, 5.0, 20.0]),
    )
    for shown, titles in (
        (few, ["CSI, rain ≥ 1 mm/h"]),
        (more, ["CSI, rain ≥ 1 mm/h", "bias, rain ≥ 1 mm/h", "FSS, 5 km, rain ≥ 1 mm/h", "RMSE, mm/h"]),
    ):
        figure = by_figure(shown, dim, 1.0)
        assert [axis.get_title() for axis in figure.axes] == [*titles, ""]
        assert [bar.get_height() for bar in figure.axes[-1].patches] == [4, 2, 0]
    evaluation = Evaluation(scores(), 1.0, facts={}, **{f"by_{dim}": more})
    text = write_report(evaluation, tmp_path / "a.html", title="a").read_text(encoding="utf-8")
    heading = {"event": "By event", "hour": "By hour of day"}[dim]
    assert f"<h2>{heading}</h2>" in text
    one = Evaluation(scores(), 1.0, facts={}, **{f"by_{dim}": more.isel({dim: [0]})})
    assert "<h2>By" not in write_report(one, tmp_path / "a.html", title="a").read_text(encoding="utf-8")


def test_columns_are_scores_whose_best_value_is_known() -> None:
    for name in COLUMNS:
        assert SCORES[name].label and (SCORES[name].better or SCORES[name].ideal is not None), name


@pytest.mark.parametrize(
    ("name", "values", "best"), [("csi", [0.2, 0.4], 1), ("far", [0.2, 0.4], 0), ("frequency_bias", [0.4, 2.1], 1)]
)
def test_the_best_is_marked_whatever_best_means(name: str, values: list[float], best: int) -> None:
    data = scores()
    data[name] = (data[name].dims, np.array(values)[:, None, None] * np.ones((2, 1, 2)))
    marked = [cell.best for cell in Column.of(data, name, threshold=1.0).cells()]
    assert marked == [number == best for number in (0, 1)]


def test_a_difference_is_called_one_only_where_it_is_shown() -> None:
    data = scores().assign(csi_mean=(("forecaster", "threshold"), [[0.5], [0.3]]))
    data = data.assign_attrs(confidence=0.95, least_events=1)
    dims = ("forecaster", "reference", "threshold")
    data = data.assign_coords(reference=NAMES)
    for better, said in ((0, "undecided"), (1, "better"), (-1, "worse")):
        data["csi_mean_better"] = (dims, np.full((2, 2, 1), better))
        data["csi_mean_difference_interval"] = (("bound", *dims), np.full((2, 2, 2, 1), -0.01))
        (row,) = difference_tables(data, 1.0)[0].rows
        assert [cell.text for cell in row] == ["steps <b>", "+0.200", "−0.010 to −0.010", said]
    (row,) = difference_tables(data.assign_attrs(least_events=6), 1.0)[0].rows
    assert row[-1].text == "too few events to decide (1; at least 6 are needed)"


def test_nobody_is_marked_where_all_are_alike() -> None:
    data = scores()
    data["csi"] = xr.zeros_like(data["csi"])
    assert not any(cell.best for cell in Column.of(data, "csi", threshold=1.0).cells())


def test_frames_of_a_map_are_classes_one_below_the_other_north_up() -> None:
    mock = mock_archive(3, 12, 10)
    grid = Grid(mock["y"].values, mock["x"].values, str(find_crs_wkt(mock, "rain_rate")))
    frames = mock["rain_rate"].values
    with Image.open(io.BytesIO(sprite(frames, MapView.of(grid)))) as image:
        shown = np.asarray(image)
    expected = rain_classes(MapView.of(grid).north_up(frames)).reshape(36, 10)
    np.testing.assert_array_equal(shown, expected)
    assert (expected == MISSING_CLASS).any()


def test_maps_end_where_nothing_was_observed() -> None:
    mock = mock_archive(3, 60, 40)
    grid = Grid(mock["y"].values, mock["x"].values, str(find_crs_wkt(mock, "rain_rate")))
    rain = np.full((3, 60, 40), np.nan, np.float32)
    rain[:, 20:40, 5:25] = 1.0

    def drawn(rain: np.ndarray) -> tuple[int, int]:
        text = str(EventMaps("t", "", grid, np.datetime64("2026-01-01"), 5.0, rain[0], rain[1:], {}).block())
        png = base64.b64decode(re.findall(r"data:image/png;base64,([^\"']+)", text)[0])
        with Image.open(io.BytesIO(png)) as image:
            return image.size

    assert drawn(rain) == (20 + 2, 3 * (20 + 2))  # a twentieth stays on each side
    assert drawn(np.full_like(rain, np.nan)) == (40, 3 * 60)
