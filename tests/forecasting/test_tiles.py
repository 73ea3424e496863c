"""Tiles: together they are the whole."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from checking import query
from scipy.ndimage import uniform_filter
from standing import moving

import raincast
from raincast import schema
from raincast.forecaster import Prediction, Query
from raincast.forecasting import Memory
from raincast.forecasting.memory import GIB, SLACK, Footprint, _array_bytes
from raincast.forecasting.network import NetworkForecaster
from raincast.forecasting.tiles import Tiling, in_tiles
from raincast.models.encoder_forecaster import PyramidEncoderForecaster
from raincast.models.heads import RateHead
from raincast.transforms import DbzScaling


def doubled(asked: Query) -> Prediction:
    """Needs no surroundings; the probabilities are those of the covariate."""
    return Prediction(2 * asked.rain[:, :2], probabilities=asked.covariates["past"][:, :2], done=("network",))


@pytest.mark.parametrize("shape", [(100, 64), (64, 64), (37, 203), (129, 130)])
def test_what_needs_no_surroundings_is_the_same_in_tiles(shape):
    rain, share = np.random.default_rng(0).random((2, 1, 3, 1, *shape), np.float32)
    whole = query(rain, 2, covariates={"past": share}, thresholds=[1.0])
    tiled = in_tiles(doubled, whole, Tiling((64, 64), 16, 8))
    np.testing.assert_allclose(tiled.rates, 2 * rain[:, :2], rtol=1e-5)
    np.testing.assert_allclose(tiled.probabilities, share[:, :2], rtol=1e-5)
    assert tiled.done == ("network",) and tiled.thresholds == (1.0,) and tiled.probabilities.max() <= 1


def test_what_looks_less_far_than_three_eighths_of_the_overlap_is_the_same_in_tiles():
    rain = np.random.default_rng(0).random((1, 1, 1, 150, 170), np.float32)

    def blur(asked: Query) -> Prediction:
        return Prediction(uniform_filter(asked.rain, (0, 0, 0, 11, 11), mode="constant"), done=("blur",))

    tiled = in_tiles(blur, query(rain, 1), Tiling((64, 64), 16, 8))
    np.testing.assert_allclose(tiled.rates, blur(query(rain, 1)).rates, atol=1e-6)


def test_members_are_not_made_in_tiles():
    rain = np.zeros((1, 3, 1, 100, 64), np.float32)
    with pytest.raises(ValueError, match="Members cannot be forecast in tiles"):
        in_tiles(doubled, query(rain, 2, members=True), Tiling((64, 64), 16, 8))


def test_every_tile_begins_at_a_multiple_of_the_stride_and_they_share_the_overlap():
    tiling = Tiling((96, 64), 32, 16)
    for axis, length in ((0, 1000), (1, 333), (1, 65), (0, 96)):
        spans = tiling.spans(length, axis)
        assert spans[0].start == 0 and spans[-1].stop == length
        assert all(span.start % 16 == 0 and span.stop - span.start <= tiling.size[axis] for span in spans)
        assert all(a.stop - b.start >= 32 for a, b in itertools.pairwise(spans))


def test_tiles_that_do_not_get_on_are_refused():
    with pytest.raises(ValueError, match="not multiples of 16"):
        Tiling((96, 60), 32, 16)
    with pytest.raises(ValueError, match="no larger than their overlap"):
        Tiling((32, 64), 32, 16)


@pytest.fixture(scope="module")
def network():
    """With weights at random, three times as large as at the start: it hangs on its surroundings."""
    torch.manual_seed(0)
    level = {"conv_channels": 4, "hidden_channels": 6, "stride": 2, "down_kernel": 4}
    net = PyramidEncoderForecaster(stages=[level], patch=2, head_channels=4)
    with torch.no_grad():
        for weight in net.parameters():
            weight *= 1.5
    return NetworkForecaster(
        net, RateHead(), DbzScaling(), name="network", input_steps=3, lead_steps=3, step_minutes=5.0
    )


def test_a_network_in_tiles_is_the_whole_within_a_thousandth(network):
    coarse = np.random.default_rng(1).gamma(0.4, 6.0, (3, 20, 24)).repeat(8, 1).repeat(8, 2)
    asked = query(coarse.astype(np.float32)[None, :, None], 3)
    whole = network.predict(asked).rates
    tiled = in_tiles(network.predict, asked, Tiling((112, 112), 96, 4)).rates
    assert whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, atol=1e-3)
    poor = in_tiles(network.predict, asked, Tiling((32, 32), 8, 4)).rates
    assert np.abs(poor - whole).max() > 1e-3  # it would show if tiles shared too little


@pytest.fixture(scope="module")
def storm() -> xr.Dataset:
    """Rain that moves on 200 × 230 pixels, a corner of which no radar sees."""
    frames = moving(4, 200, 230)
    frames[schema.RAIN][:, :30, :40] = np.nan
    return frames


def differing(a: xr.Dataset, b: xr.Dataset) -> float:
    names = [name for name in ("rain_rate", "rain_rate_exceedance", "rain_rate_members") if name in a]
    assert all((a[name].notnull() == b[name].notnull()).all() for name in names)
    return max(float(np.abs(a[name] - b[name]).max()) for name in names)


class Fixed(Memory):
    """Tiles of so many pixels, on any grid."""

    def __init__(self, side: int, overlap: int) -> None:
        super().__init__()
        self.tiles = Tiling((side, side), overlap, 8)

    def tiling(self, *_: object) -> Tiling:
        self.last = f"of {self.tiles.size}"
        return self.tiles


@pytest.mark.parametrize("rule", ["area", "csi"])
def test_the_default_network_in_tiles_is_the_whole_within_a_thousandth(rule: str, storm: xr.Dataset) -> None:
    """Rates, probabilities and members of the pipeline; motion, S-PROG and areas are those of the whole grid."""
    made = raincast.load_forecaster(lead_steps=3, rates_by=rule, members=2, thresholds=[0.5, 2.0])
    whole = made(storm)
    assert "tiles" not in whole.attrs and float(whole["rain_rate"].max()) > 5
    made.memory = Fixed(168, 128)
    tiled = made(storm)
    assert tiled.attrs["tiles"] == "of (168, 168)"
    assert differing(tiled, whole) < 1e-3
    made.memory = Fixed(40, 0)
    assert differing(made(storm), whole) > 1e-3, "it would show if tiles shared too little"


def test_without_memory_for_the_whole_grid_tiles_are_apart_and_it_says_so(
    storm: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    made = raincast.load_forecaster(lead_steps=3, thresholds=[])
    arrays = _array_bytes(made.footprint, (200, 230), 3, 0)
    little = (arrays + SLACK * made.footprint.bytes_per_pixel(3) * 100**2) / GIB
    made.memory = Memory(little)
    tiled = made(storm)
    assert tiled.attrs["tiles"].endswith("each forecast by itself") and tiled.attrs["forecast_method"] == "network"
    assert "each tile is forecast by itself" in caplog.text
    needed = float(caplog.text.split("memory_gib=")[1].split(" ")[0]) + 0.1
    caplog.clear()
    tiling = Memory(needed).tiling(made.footprint, (200, 230), 3, 0)
    assert not caplog.text and (tiling is None or (tiling.overlap == 192 and not tiling.apart))
    members = raincast.load_forecaster(lead_steps=3, thresholds=[], members=2)
    members.memory = Memory(little)
    with pytest.raises(ValueError, match=r"Members cannot be forecast in tiles.*memory_gib="):
        members(storm)


def test_where_memory_is_small_tiles_share_less_and_say_so(caplog):
    """KNMI's grid within 1.5 GiB, by a network that takes 9 kB a pixel."""
    footprint = Footprint(3, stride=4, bytes_per_pixel=lambda _: 9000.0 / SLACK)
    tiling = Memory(1.5).tiling(footprint, (765, 700), 18, 0)
    assert tiling is not None and 32 <= tiling.overlap < 192 and min(tiling.size) > 2 * tiling.overlap
    assert "tile_overlap=192" in caplog.text and f"they share {tiling.overlap}" in caplog.text
    needed = float(caplog.text.split("memory_gib=")[1].split(" ")[0])
    roomy = Memory(needed + 0.1).tiling(footprint, (765, 700), 18, 0)
    assert roomy is not None and roomy.overlap == 192


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_container_is_its_limit(tmp_path, version):
    from raincast.forecasting.memory import _free_of_container

    controllers, folder = (("3:cpu,memory", tmp_path / "memory"), ("0:", tmp_path))[version - 1]
    most, used = (("limit_in_bytes", "usage_in_bytes"), ("max", "current"))[version - 1]
    (tmp_path / "own").write_text(f"9:name=systemd:/\n{controllers}:/a/b\n")
    for group, limit in ((folder, "max"), (folder / "a", str(3 * GIB)), (folder / "a" / "b", str(10 * GIB))):
        group.mkdir(parents=True, exist_ok=True)
        (group / f"memory.{most}").write_text(limit)
        (group / f"memory.{used}").write_text(str(GIB))
        (group / "memory.stat").write_text(f"anon 7\ninactive_file {GIB // 2}\n")
    assert _free_of_container(tmp_path, tmp_path / "own") == 2.5
    assert _free_of_container(tmp_path, tmp_path / "absent") == float("inf")


def test_memory_decides_on_tiles(network):
    footprint = Footprint.of_network(network)
    assert (footprint.input_steps, footprint.device, footprint.stride) == (3, "cpu", 4)
    assert Memory(8.0).tiling(footprint, (100, 100), 3, 0) is None
    small = Memory(0.6, overlap=32)
    tiling = small.tiling(footprint, (800, 700), 3, 0)
    assert tiling is not None and tiling.overlap == 32 and tiling.stride == 4
    assert "that share 32" in (small.last or "")
    rows, columns = tiling.num_tiles((800, 700))
    assert rows * columns > 1
    with pytest.raises(ValueError, match=r"needs at least .* GiB, tile by tile; .* memory_gib="):
        Memory(0.001).tiling(footprint, (800, 700), 3, 0)
    with pytest.raises(ValueError, match="memory_gib=0"):
        Memory(0)
    # a forecaster of which nothing is known
    assert Memory(2.0).tiling(Footprint(4), (2000, 2000), 6, 0) is not None
    strip = Memory(0.6, overlap=32).tiling(footprint, (24, 40_000), 3, 0)  # narrower than the overlap
    assert strip is not None and strip.num_tiles((24, 40_000))[0] == 1 < strip.num_tiles((24, 40_000))[1]
