"""Which places are drawn: deterministic, the same over ranks, within the grid, rainy."""

import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from raincast.archive import Archive, write_part
from raincast.data.sampler import (
    NUM_ORIENTATIONS,
    Candidates,
    EvalSampler,
    Place,
    Sampling,
    TrainSampler,
    find_candidates,
    tile_positions,
)
from raincast.schema import RAIN, mock_archive


def candidates(n: int = 200, *, crop=(8, 6), grid=(20, 17), seed: int = 0, weight=None) -> Candidates:
    rng = np.random.default_rng(seed)
    return Candidates(
        start=np.arange(n),
        y=rng.integers(0, grid[0] - crop[0] + 1, n),
        x=rng.integers(0, grid[1] - crop[1] + 1, n),
        weight=rng.uniform(0.01, 1.0, n) if weight is None else weight,
        source=np.zeros(n, np.int64),
        crop=crop,
        spacing=(crop[0] // 2, crop[1] // 2),
        grids=(grid,),
    )


def sampler(epoch: int = 0, *, n: int = 64, given: Candidates | None = None, **kwargs) -> TrainSampler:
    given = given or candidates()
    drawing = Sampling(**{key: kwargs.pop(key) for key in ("augment", "jitter") if key in kwargs})
    made = TrainSampler(given, n, drawing, **({"seed": 7} | kwargs))
    made.set_epoch(epoch)
    return made


def test_places_follow_from_seed_and_epoch_alone():
    places = [*sampler(3)]
    again = sampler(0)
    _ = [*again], [*again]  # what was drawn before does not matter
    again.set_epoch(3)
    assert [*again] == places == [*sampler(3)]
    others = [[*sampler(epoch)] for epoch in (0, 1, 2)] + [[*sampler(3, seed=8)]]
    assert all(other != places for other in others)
    assert len({tuple(other) for other in others}) == 4


@settings(max_examples=50, deadline=None)
@given(world=st.integers(1, 4), batch=st.integers(1, 5), n=st.integers(4, 90), epoch=st.integers(0, 3))
def test_ranks_together_see_the_batches_of_one_process(world, batch, n, epoch):
    """Batch k of one process with world·b places holds what batch k of the ranks, b each, holds."""
    one = [*BatchSampler(sampler(epoch, n=n), world * batch, drop_last=True)]
    ranks = [sampler(epoch, n=n, rank=r, world_size=world) for r in range(world)]
    assert len({len(rank) for rank in ranks}) == 1  # else a rank waits for the others for ever
    batches = [[*BatchSampler(rank, batch, drop_last=True)] for rank in ranks]
    assert len(batches[0]) == len(one) == n // (world * batch)
    for k, whole in enumerate(one):
        assert sorted(place for own in batches for place in own[k]) == sorted(whole)


def test_no_window_and_place_twice_in_an_epoch():
    places = [*sampler(n=200)]
    assert sorted(place.start for place in places) == [*range(200)]  # candidates differ by their start
    assert len(sampler(n=500)) == 200  # no more than there are


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_places_lie_within_the_grid(data):
    size = st.integers(1, 20)
    grid = data.draw(st.tuples(size, size))
    crop = tuple(data.draw(st.integers(1, n)) for n in grid)
    made = candidates(50, crop=crop, grid=grid, seed=data.draw(st.integers(0, 9)))
    places = [*sampler(given=made, n=50)]
    assert len(places) == 50
    for place in places:
        assert (place.height, place.width) == crop
        assert 0 <= place.y <= grid[0] - crop[0] and 0 <= place.x <= grid[1] - crop[1]
        assert 0 <= place.orientation < NUM_ORIENTATIONS


def test_crops_begin_at_every_pixel_and_turn_every_way():
    """A lattice half a crop apart, moved by up to a quarter: no pixel is out of reach."""
    grid, crop = (24, 24), (8, 8)
    lattice = np.arange(0, 17, 4)
    y, x = (a.ravel() for a in np.meshgrid(lattice, lattice))
    made = Candidates(np.arange(25), y, x, np.ones(25), np.zeros(25, np.int64), crop, (4, 4), (grid,))
    drawn = [p for epoch in range(60) for p in sampler(epoch, given=made, n=25)]
    assert {p.y for p in drawn} == {p.x for p in drawn} == set(range(17))
    turned = Counter(p.orientation for p in drawn)
    assert set(turned) == set(range(8))
    # 1500 draws, 187.5 each with a standard deviation of 12.8: five of them
    assert all(abs(count - 187.5) < 64 for count in turned.values())


def test_without_augmentation_crops_move_but_do_not_turn():
    places = [*sampler(augment=False)]
    assert {place.orientation for place in places} == {0}
    assert len({place.y for place in places}) > 1


def test_jitter_spreads_the_rain_and_leaves_the_places():
    plain, jittered = [*sampler(n=200)], [*sampler(n=200, jitter=0.1)]
    assert [p._replace(gain=1.0) for p in jittered] == plain
    logs = np.log([p.gain for p in jittered])
    # 200 draws of a normal: the mean within 5·0.1/√200 = 0.035, the spread within 5·0.1/√400 = 0.025
    assert abs(logs.mean()) < 0.035 and abs(logs.std() - 0.1) < 0.025


@pytest.mark.parametrize("world", [1, 3])
def test_a_run_that_goes_on_sees_the_rest_of_the_epoch(world):
    whole = [[*sampler(2, rank=r, world_size=world)] for r in range(world)]
    for rank in range(world):
        resumed = sampler(rank=rank, world_size=world)
        resumed.go_on(2, 5 * world)
        assert [*resumed] == whole[rank][5:]
        resumed.set_epoch(0)  # before it is told of the resume
        assert [*resumed] == whole[rank][5:]
        resumed.set_epoch(3)
        assert [*resumed] == [*sampler(3, rank=rank, world_size=world)]


@pytest.mark.parametrize("world", [1, 2])
def test_a_few_places_again_and_again(world):
    """The first epoch's first four, in every epoch, in the same batches for all ranks together."""
    first = list(sampler(0, n=4))
    for epoch in (0, 3):
        ranks = [list(sampler(epoch, n=500, only=4, rank=rank, world_size=world)) for rank in range(world)]
        together = [place for places in zip(*ranks, strict=True) for place in places]
        assert len(together) == 500, "more than there are places"
        assert set(together[:4]) == set(together) and together == together[:4] * 125
    assert len(first) == 4


def test_wetter_places_are_drawn_in_proportion():
    """With one draw an epoch, a weight of 1:9 is drawn 1:9."""
    weight = np.array([0.1, 0.9])
    made = candidates(2, weight=weight)
    drawn = Counter(next(iter(sampler(epoch, given=made, n=1))).start for epoch in range(2000))
    # binomial, 2000·0.9 = 1800, standard deviation √(2000·0.9·0.1) = 13.4: five of them
    assert abs(drawn[1] - 1800) < 67


@given(n=st.integers(0, 30), world=st.integers(1, 9))
def test_evaluation_sees_each_place_once_whatever_the_ranks(n, world):
    places = [Place(i, 0, 0, 4, 4) for i in range(n)]
    ranks = [EvalSampler(places, rank=r, world_size=world) for r in range(world)]
    assert sorted(place for rank in ranks for place in rank) == places
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    assert [*EvalSampler(places)] == places


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    """30 frames of 12 × 10, of which frame 11 is missing; the north-west was never seen, the south is dry."""
    dataset = mock_archive(30, missing=(11,))
    dataset[RAIN].values[:, :7, :6] = np.nan
    dataset[RAIN].values[4:8, 3:5] = np.nan
    dataset[RAIN].values[:, 9:] = 0.0
    folder = tmp_path_factory.mktemp("archive")
    write_part(dataset, folder / "a.nc")
    return Archive.open(folder)


STARTS = np.array([0, 1, 3, 12, 21, 25])


@pytest.mark.parametrize("crop", [(5, 4), (12, 10), (12, 3), (1, 1)])
def test_weights_and_coverage_against_brute_force(archive, crop):
    sampling = Sampling(rain_weight=0.6, min_weight=0.01, rain_scale=2.0)
    calls = []
    found = find_candidates(archive, STARTS, 5, crop, sampling, progress=lambda *n: calls.append(n))
    rain = np.insert(archive.read(0, 29), 11, np.nan, axis=0)  # by slot
    expected = {}
    for start in STARTS:
        for y in [*range(0, 12 - crop[0], max(1, crop[0] // 2)), 12 - crop[0]]:
            for x in [*range(0, 10 - crop[1], max(1, crop[1] // 2)), 10 - crop[1]]:
                box = rain[start : start + 5, y : y + crop[0], x : x + crop[1]]
                if np.isfinite(box).mean() >= 0.5:
                    # q of DGMR, a pixel that was not seen adds nothing
                    amount = np.nan_to_num(1 - np.exp(-box.astype(np.float64) / 2.0)).mean()
                    expected[int(start), y, x] = min(1.0, 0.01 + 0.6 * amount)
    places = [*zip(found.start.tolist(), found.y.tolist(), found.x.tolist(), strict=True)]
    assert len(set(places)) == len(places)
    assert set(places) == set(expected)
    np.testing.assert_allclose(found.weight, [expected[place] for place in places], rtol=1e-6)
    # frames 0 to 7, 11 to 15 and 20 to 28 are in a window: each of them is read once, chunk by chunk
    assert calls == [(8, 22), (13, 22), (17, 22), (22, 22)]


def test_wetter_crops_are_drawn_more(archive):
    weighed = find_candidates(archive, STARTS, 5, (4, 4), Sampling())
    n = weighed.start.size // 4
    rain = np.insert(archive.read(0, 29), 11, np.nan, axis=0)

    def mean_rain(made: Candidates) -> float:
        places = [p for epoch in range(20) for p in sampler(epoch, given=made, n=n)]
        boxes = [rain[p.start : p.start + 5, p.y : p.y + 4, p.x : p.x + 4] for p in places]
        return float(np.mean([np.nanmean(1 - np.exp(-box)) for box in boxes]))

    equal = find_candidates(archive, STARTS, 5, (4, 4), Sampling(rain_weight=0.0))
    assert mean_rain(weighed) > 1.1 * mean_rain(equal)


def test_unseen_crops_are_an_error_that_names_the_best(archive):
    # only 5 of 12 rows and 4 of 10 columns are seen throughout: 1 − 7·6/(12·10) = 65 % in the window from 11
    with pytest.raises(ValueError, match=r"No crop of 12×10 pixels is observed to 90%.*the best is 65.0%.*Lower"):
        find_candidates(archive, STARTS, 5, (12, 10), Sampling(min_coverage=0.9))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_coverage", 1.1),
        ("min_coverage", -0.1),
        ("rain_weight", -1.0),
        ("min_weight", 0.0),
        ("rain_scale", 0.0),
        ("jitter", -0.1),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"data\.sampling\.{name}={value}: give a number "):
        Sampling(**{name: value})


def test_weighing_warns_of_nothing(archive):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_candidates(archive, STARTS, 5, (4, 4), Sampling(min_coverage=0.0))


@given(size=st.integers(1, 40), crop=st.integers(1, 40))
def test_tiles_lie_side_by_side(size, crop):
    if crop <= size:
        positions = tile_positions(size, crop)
        assert positions == [k * crop for k in range(size // crop)]
