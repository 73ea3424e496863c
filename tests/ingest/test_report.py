"""Missing times: against the whole series, and without it."""

import numpy as np
import pytest

from raincast import schema
from raincast.ingest import archive_folder

STEP = np.timedelta64(5, "m").astype("timedelta64[ns]")
FIRST = np.datetime64("2026-01-01", "ns")


@pytest.mark.parametrize("seed", range(5))
def test_missing_times_against_the_whole_series(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_folder, "BLOCK", 7)
    rng = np.random.default_rng(seed)
    kept = FIRST + STEP * np.flatnonzero(rng.random(60) < 0.6)
    first, last = FIRST + STEP * 3, FIRST + STEP * 55  # what was there before and after does not count
    num, times = archive_folder.missing_times(first, last, kept, STEP)
    inside = kept[(kept >= first) & (kept <= last)]
    due = first + STEP * np.arange(53)
    np.testing.assert_array_equal(times, np.setdiff1d(due, inside))
    assert num == times.size
    monkeypatch.setattr(archive_folder, "MOST_LISTED", 4)
    assert archive_folder.missing_times(first, last, kept, STEP)[0] == num
    np.testing.assert_array_equal(archive_folder.missing_times(first, last, kept, STEP)[1], times[:4])


def test_a_wrong_century_is_counted_not_listed() -> None:
    kept = np.array(["1926-01-01", "2026-01-01"], "datetime64[ns]")
    num, times = archive_folder.missing_times(kept[0], kept[1], kept, STEP)
    assert num == 36525 * 288 - 1 and times.size == archive_folder.MOST_LISTED
    assert times[0] == kept[0] + STEP
    assert schema.missing_times(kept[:1], STEP).size == 0
