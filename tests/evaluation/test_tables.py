import numpy as np
import pytest
import xarray as xr

from raincast.evaluation.report.tables import lead_minutes, score_table, summary_table, table_text

NAMES = ["good", "bad"]
THRESHOLDS = [0.1, 1.0]


def scores(num_leads: int = 3) -> xr.Dataset:
    """`good` beats `bad` in everything; nothing is defined at the last lead of the second threshold."""
    shape = (2, 2, num_leads)
    good = np.array([1.0, 0.0])[:, None, None] * np.ones(shape)
    csi = 0.2 + 0.5 * good
    csi[:, 1, -1] = np.nan
    by_threshold = {"csi": csi, "pod": csi, "far": 1 - csi, "frequency_bias": 2.0 - 0.9 * good, "hss": csi}
    dims = ("forecaster", "threshold", "lead_time")
    error = 1.5 - good[:, 0]
    return xr.Dataset(
        {name: (dims, values) for name, values in by_threshold.items()}
        | dict.fromkeys(("mae", "rmse"), (("forecaster", "lead_time"), error)),
        coords={"forecaster": NAMES, "threshold": THRESHOLDS, "lead_time": 5.0 * np.arange(1, num_leads + 1)},
    )


def bold_cells(table, column):
    return [cell.plain for cell in table.columns[column]._cells if getattr(cell, "style", "") == "bold"]


def test_minutes_are_the_same_from_floats_and_timedeltas():
    data = scores()
    as_delta = data.assign_coords(lead_time=(data.lead_time.values * 60).astype("timedelta64[s]"))
    np.testing.assert_array_equal(lead_minutes(data), lead_minutes(as_delta))
    assert table_text(score_table(data, threshold=1)) == table_text(score_table(as_delta, threshold=1))


def test_score_table_has_the_values():
    text = table_text(score_table(scores(), threshold=1.0))
    lines = text.splitlines()
    assert "CSI at ≥ 1 mm/h" in lines[0]
    assert next(line for line in lines if "good" in line).split() == ["good", "0.700", "0.700", "–"]
    assert "+5 " in text and "+15" in text


@pytest.mark.parametrize("num_leads", [1, 12, 13, 72])
def test_at_most_twelve_columns_with_the_first_and_the_last(num_leads):
    table = score_table(scores(num_leads), threshold=0.1)
    headers = [str(column.header) for column in table.columns[1:]]
    assert len(headers) == min(num_leads, 12)
    assert headers[0] == "+5" and headers[-1] == f"+{5 * num_leads}"


def test_the_best_is_bold_whatever_best_means():
    table = summary_table(scores())
    assert [len(bold_cells(table, column)) for column in range(2, 9)] == [2] * 7
    assert bold_cells(table, 4) == ["0.300", "0.300"]  # FAR: small is good
    assert bold_cells(table, 5) == ["1.100", "1.100"]  # bias: near 1 is good


def test_who_shares_the_lead_is_bold_and_where_nobody_leads_none_is():
    data = scores()
    third = data.isel(forecaster=[0]).assign_coords(forecaster=["third"])
    three = xr.concat([data, third], "forecaster")  # good, bad, and another as good
    assert bold_cells(score_table(three, threshold=0.1), 1) == ["0.700", "0.700"]
    assert bold_cells(score_table(three.assign(csi=three.csi * 0), threshold=0.1), 1) == []
    assert bold_cells(score_table(data.isel(forecaster=[0]), threshold=0.1), 1) == []


def test_a_bias_of_zero_is_worst():
    data = scores()
    data["frequency_bias"][1] = 0.0
    assert "0.000" not in bold_cells(summary_table(data), 5)


def test_means_leave_out_undefined_leads_and_undefined_stays_so():
    data = scores()
    data["csi"][1, 1] = np.nan
    text = table_text(summary_table(data))
    rows = [line.split() for line in text.splitlines() if "good" in line or "bad" in line]
    assert rows[2][:5] == ["≥", "1", "mm/h", "good", "0.700"]
    assert rows[3][:2] == ["bad", "–"]


def test_scores_that_were_not_computed_have_no_column():
    text = table_text(summary_table(scores()[["csi", "mae"]]))
    assert "CSI" in text and "MAE" in text and "HSS" not in text


def test_plain_text_has_no_escape_codes_and_no_trailing_blanks():
    text = table_text(summary_table(scores()))
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match=r"Choose one of 0\.1, 1"):
        score_table(scores(), threshold=7)
    with pytest.raises(ValueError, match="csi, pod"):
        score_table(scores(), threshold=1, score="sal")
