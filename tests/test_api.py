"""raincast from Python: Datasets that are lazy and agree with the archive, networks that load again."""

import tomllib
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import xarray as xr

import raincast
from raincast import schema
from raincast.api import RaincastBackend
from raincast.archive import Archive
from raincast.baselines import Extrapolation, Persistence
from raincast.checkpoint import describe
from raincast.data.datamodule import RadarDataModule
from raincast.data.windows import BlockSplit, TestAll
from raincast.evaluation import Metrics, evaluate
from raincast.forecaster import Prediction, Query
from raincast.losses import BalancedLoss
from raincast.plain import construct
from raincast.training.module import NowcastModule, adamw_warmup_cosine

SETTINGS: dict[str, Any] = {
    "model": {
        "_target_": "raincast.models.encoder_forecaster.StackedEncoderForecaster",
        "patch": 4,
        "hidden_channels": [4],
        "input_kernel": 3,
        "state_kernel": 3,
    },
    "transform": {"_target_": "raincast.transforms.DbzScaling"},
    "head": {"_target_": "raincast.models.heads.RateHead"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("archive")
    for day in range(3):
        mock = schema.mock_archive(24, 16, 20, start=f"2026-01-0{day + 1}", missing=(5,), seed=day)
        mock.to_netcdf(made / f"{day}.nc", engine="netcdf4")
    return made


def test_an_archive_is_a_dataset_that_reads_what_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive.open(folder)
    whole = archive.read(0, archive.num_times)
    dataset = raincast.open_archive(folder)
    asked = []
    read = Archive.read
    monkeypatch.setattr(Archive, "read", lambda *args, **at: asked.append(args[1:]) or read(*args, **at))
    rain = dataset["rain_rate"]
    assert not asked and rain.shape == whole.shape and rain.dtype == np.float32
    for key in (
        (slice(30, 33), slice(2, 9), slice(None, None, 3)),
        (5, slice(None, None, -1), slice(None)),
        (slice(10, 0, -4), 3, -1),
        (slice(5, 5), slice(None), slice(None)),
        (np.array([40, 2, 2]), slice(None), np.array([1, 7])),
    ):
        expected = (
            whole[np.ix_(*(np.arange(n)[k] for n, k in zip(whole.shape, key, strict=True)))]
            if isinstance(key[0], np.ndarray)
            else whole[key]
        )
        np.testing.assert_array_equal(rain[key].values, expected)
    assert asked[0] == (30, 3) and max(num for _, num in asked) < 60
    schema.check_archive(dataset.isel(time=slice(0, 4)))
    xr.testing.assert_equal(
        dataset.isel(time=slice(0, 4)).load(),
        archive.to_dataset(0, 4).drop_vars("missing_times").assign_coords(missing_times=dataset["missing_times"]),
    )
    assert dataset.chunk({"time": 24})["rain_rate"].mean().compute() == pytest.approx(np.nanmean(whole), rel=1e-5)


def test_radar_files_are_a_dataset(folder: Path) -> None:
    dataset = raincast.open_radar(f"{folder}/*.nc", start="2026-01-01T00:10", end="2026-01-01T00:30")
    assert dataset.sizes["time"] == 4  # 00:25 is missing
    np.testing.assert_array_equal(dataset["rain_rate"][1:3].values, Archive.open(folder).read(3, 2))
    one = xr.open_dataset(folder / "1.nc", engine=RaincastBackend)
    np.testing.assert_array_equal(one["rain_rate"], raincast.open_archive(folder / "1.nc")["rain_rate"])
    with pytest.raises(ValueError, match=r"no frame from 2027 to None: the files have 2026-01-01T00:00 to"):
        raincast.open_radar(folder, start="2027")
    with pytest.raises(ValueError, match="source='nimbus' is unknown; there are archive, auto"):
        raincast.open_radar(folder, source="nimbus")
    with pytest.raises(FileNotFoundError):
        raincast.open_radar(folder / "none*.h5")
    with pytest.raises(FileNotFoundError, match="the list of files is empty"):
        raincast.open_radar([])
    with pytest.raises(TypeError, match="opens a path"):
        RaincastBackend().open_dataset(np.zeros(3))


def test_xarray_finds_the_engine_by_name() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["xarray.backends"] == {"raincast": "raincast.api:RaincastBackend"}


def test_what_there_is_is_listed_and_shown_in_a_line(folder: Path) -> None:
    assert {"evaluate", "open_radar", "open_archive", "load_forecaster", "train", "metrics"} <= set(dir(raincast))
    assert raincast.metrics.csi.__doc__ and raincast.models.ConvLSTM
    with pytest.raises(AttributeError, match="no 'opne_radar'; it has evaluate, load_forecaster, open_archive"):
        raincast.opne_radar  # noqa: B018
    archive = Archive.open(folder)
    assert len(repr(archive)) < 250 and "69 frames of 5 min" in repr(archive) and "16 × 20 pixels" in repr(archive)
    assert "<div" in archive._repr_html_()


def test_a_network_trained_with_lightning_alone_loads_again(folder: Path, tmp_path: Path) -> None:
    data = RadarDataModule(
        folder,
        split=BlockSplit(),
        input_steps=3,
        lead_steps=2,
        crop=16,
        num_workers=0,
        samples_per_epoch=2,
        batch_size=2,
    )
    network, transform, head = (construct(SETTINGS[name]) for name in ("model", "transform", "head"))

    def trained(metadata: dict[str, Any], path: Path) -> Path:
        module = NowcastModule(
            network, head, transform, BalancedLoss(transform), adamw_warmup_cosine,
            thresholds=[1.0], lead_steps=2, step_minutes=5.0, metadata=metadata,
        )  # fmt: skip
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(max_steps=1, accelerator="cpu", limit_val_batches=0, **quiet)
        trainer.fit(module, data)
        trainer.save_checkpoint(path)
        return path

    frames = raincast.open_archive(folder).isel(time=slice(6, 9))
    forecast = raincast.load_forecaster(trained(describe(SETTINGS, data), tmp_path / "a.ckpt"), device="cpu")(
        frames
    )
    assert forecast["rain_rate"].shape == (2, 16, 20) and torch.is_grad_enabled()
    with pytest.raises(ValueError, match=r"does not state its network.*raincast.checkpoint.describe"):
        raincast.load_forecaster(trained({}, tmp_path / "b.ckpt"))
    with pytest.raises(ValueError, match="settings lack head"):
        describe({name: SETTINGS[name] for name in ("model", "transform")}, data)


def test_forecasters_are_scored_on_a_dataset_as_on_its_archive(folder: Path) -> None:
    class Mine(Persistence):
        name = "persistence"
        asked: list[np.datetime64] = []  # noqa: RUF012

        def predict(self, query: Query) -> Prediction:
            assert query.rain.shape == (1, 3, 1, 16, 20)
            self.asked += list(query.times)
            return super().predict(query)

    frames = raincast.open_archive(folder)
    scores = raincast.evaluate(
        frames,
        {"mine": Mine(), "flow": "extrapolation"},
        thresholds=[0.5, 1],
        input_steps=3,
        lead_steps=2,
        every=2,
    )
    data = RadarDataModule(folder, split=TestAll(), input_steps=3, lead_steps=2, eval_stride=2, num_workers=0)
    data.needed = ("test",)
    expected = evaluate(
        [Persistence(), Extrapolation()],
        data.eval_batches("test"),
        Metrics([0.5, 1], event_hours=scores.attrs["event_hours"]),
        lead_steps=2,
        step_minutes=5.0,
        grid=data.archive.grid,
    )
    assert scores["forecaster"].values.tolist() == ["mine", "flow"] and scores.attrs["num_windows"] == len(
        Mine.asked
    )
    for name in ("csi", "rmse", "sum_hits", "num_windows"):
        np.testing.assert_array_equal(scores[name], expected[name])
    assert {"csi_mean_interval", "csi_mean_difference_interval"} <= set(scores)
    for wrong, what in (
        ({"forecasters": ["sprong"]}, r"'sprong' is neither a file nor one of anvil, box"),
        ({"forecasters": []}, "one at least"),
        ({"lead_steps": 40}, r"No 46 consecutive frames .* lower lead_steps"),
        ({"forecasters": [object()]}, "is no forecaster: it needs name, gives and predict"),
        ({"frames": frames["rain_rate"]}, "frames is a DataArray: give a Dataset"),
    ):
        with pytest.raises((ValueError, TypeError), match=what):
            raincast.evaluate(**{"frames": frames, "forecasters": ["persistence"], **wrong})


def test_the_event_in_the_box_is_real_rain_that_says_whose_it_is() -> None:
    frames = raincast.open_sample()
    assert frames.sizes["time"] == 16 and frames.attrs["references"] == "Source: MeteoSwiss"
    assert 50 < float(frames["rain_rate"].isel(time=0).max()) < 150


def test_objects_are_shown_in_a_line_and_wrong_arguments_are_named() -> None:
    assert repr(raincast.load_forecaster()) == "ForecastPipeline(network: 4 frames → 12 lead times of 5 min)"
    with pytest.raises(TypeError, match="open_archive takes the path of an archive, found list"):
        raincast.open_archive([1])  # type: ignore[arg-type]
