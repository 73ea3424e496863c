"""Series of real frames: their times, wet share with its range, largest rate and the share that is observed."""

from pathlib import Path

import numpy as np
import pytest

from raincast.ingest.readers import Reader
from raincast.ingest.readers.fmi import FMI
from raincast.ingest.readers.mch_gif import MCHGif
from raincast.schema import RAIN

FINNISH, SWISS = (FMI(), (1226, 760), (0.757, 0.001)), (MCHGif(), (640, 710), (0.7, 0.02))


@pytest.mark.radar
@pytest.mark.parametrize(
    ("service", "pattern", "first", "last", "wet", "largest"),
    [
        (FINNISH, "fmi/20160928/*.pgm.gz", "2016-09-28T14:45", "2016-09-28T18:00", (0.30, 0.28, 0.31), 167),
        (FINNISH, "fmi/20170509/*.pgm.gz", "2017-05-09T10:45", "2017-05-09T14:00", (0.09, 0.08, 0.10), 63),
        (SWISS, "mch/20150515/*.gif", "2015-05-15T15:45", "2015-05-15T19:00", (0.17, 0.13, 0.25), 115),
        (SWISS, "mch/20160711/*.gif", "2016-07-11T20:45", "2016-07-12T00:00", (0.13, 0.12, 0.14), 115),
        (SWISS, "mch/20170131/*.gif", "2017-01-31T09:45", "2017-01-31T13:00", (0.21, 0.18, 0.24), 29),
    ],
)
def test_real_figures(
    radar_dir: Path,
    service: tuple[Reader, tuple[int, int], tuple[float, float]],
    pattern: str,
    first: str,
    last: str,
    wet: tuple[float, float, float],
    largest: float,
) -> None:
    reader, shape, (observed, tolerance) = service
    paths = sorted(radar_dir.glob(pattern))
    times = np.array([reader.scan(path).times[0] for path in paths])
    assert len(times) == 40 and set(np.diff(times)) == {np.timedelta64(5, "m")}
    assert (times[0], times[-1]) == (np.datetime64(first), np.datetime64(last))
    frames = np.stack([reader.read(path, step_minutes=5)[RAIN].values[0] for path in paths])
    covered = ~np.isnan(frames)
    shares = [(frame[ok] > 0.1).mean() for frame, ok in zip(frames, covered, strict=True)]
    np.testing.assert_allclose((np.mean(shares), min(shares), max(shares)), wet, atol=0.005)
    assert frames.shape == (40, *shape) and np.nanmax(frames) == pytest.approx(largest, abs=1)
    assert covered.mean() == pytest.approx(observed, abs=tolerance)
