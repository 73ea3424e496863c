"""The training module: it learns, masks, and scores as the evaluation does."""

from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from raincast.archive import write_part
from raincast.data.datamodule import RadarDataModule
from raincast.data.windows import BlockSplit
from raincast.evaluation import evaluate
from raincast.forecasting.network import NetworkForecaster
from raincast.losses import BalancedLoss, ClassLoss, OrdinalLoss, QuantileLoss
from raincast.models import PyramidEncoderForecaster
from raincast.models.heads import ClassHead, QuantileHead, RateHead
from raincast.models.inputs import to_network_scale
from raincast.schema import RAIN, mock_archive
from raincast.training.module import CHECKPOINT_KEY, NowcastModule, adamw_warmup_cosine
from raincast.transforms import DbzScaling

STAGES = [
    {"conv_channels": 4, "hidden_channels": 8, "stride": 2},
    {"conv_channels": 8, "hidden_channels": 8, "stride": 2},
]
THRESHOLDS = (0.5, 2.0, 10.0, 1000.0)  # the last is never reached
SCALE = DbzScaling(a=58.53, b=1.56)
LEADS = 3
CLASSES = ClassHead((0.5, 2.0, 5.0, 10.0))
LEVELS = QuantileHead((0.1, 0.25, 0.5, 0.75, 0.9))
HEADS = {
    "rate": (RateHead(), BalancedLoss(SCALE)),
    "softmax": (CLASSES, ClassLoss(SCALE, thresholds=CLASSES.thresholds)),
    "ordinal": (CLASSES, OrdinalLoss(SCALE, thresholds=CLASSES.thresholds)),
    "quantiles": (LEVELS, QuantileLoss(SCALE, levels=LEVELS.levels)),
}
any_head = pytest.mark.parametrize("name", HEADS)


def module(metadata: dict | None = None, name: str = "rate") -> NowcastModule:
    head, loss = HEADS[name]
    torch.manual_seed(0)
    optimizer = partial(
        adamw_warmup_cosine,
        lr=1e-2,
        weight_decay=0.0,
        betas=(0.9, 0.99),
        warmup_fraction=0.05,
        final_fraction=0.01,
    )
    return NowcastModule(
        PyramidEncoderForecaster(out_channels=head.num_channels, stages=STAGES),
        head,
        SCALE,
        loss,
        optimizer,
        thresholds=THRESHOLDS,
        lead_steps=LEADS,
        step_minutes=5.0,
        metadata=metadata or {},
    )


def moving_rain(num_windows: int = 2, size: int = 16) -> dict[str, torch.Tensor]:
    """A blob that moves a pixel a step, each window from elsewhere; a column was never seen."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    time = torch.arange(3 + LEADS)[None, :, None, None]
    start = torch.arange(num_windows)[:, None, None, None]
    distance = (x - 3 - time - start) ** 2 + (y - 5 - 4 * start) ** 2
    rain = (20 * torch.exp(-distance / 6.0) - 0.1).clamp(min=0.0)[:, :, None].float()
    rain[..., -1] = torch.nan
    target = rain[:, 3:].clone()
    return {"input": rain[:, :3], "target": target, "target_mask": target.isfinite()}


def trainer(folder: Path, **kwargs) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    given = {"accelerator": "cpu", "enable_model_summary": False, "default_root_dir": folder}
    return L.Trainer(**(quiet | given | kwargs))


def loss_of(own: NowcastModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    own.log = lambda *_, **__: None  # outside a Trainer there is nobody to log to
    return own.training_step(batch, 0)


def test_one_batch_is_learnt_by_heart(tmp_path):
    """A network that is wired wrongly cannot; the loss of no rain, its beginning, falls to a tenth."""
    own, batch = module(), moving_rain()
    zero = own.loss(torch.zeros_like(batch["target"]), SCALE.forward(batch["target"]), batch["target_mask"])
    trainer(tmp_path, max_steps=80).fit(own, torch.utils.data.DataLoader([batch] * 80, batch_size=None))
    assert loss_of(own, batch) < 0.1 * zero
    rates = own(batch["input"])
    error = (rates - batch["target"])[batch["target_mask"]].abs().mean()
    persistence = (batch["input"][:, -1:] - batch["target"])[batch["target_mask"]].abs().mean()
    assert error < 0.5 * persistence


@pytest.mark.parametrize("name", [name for name in HEADS if name != "rate"])
def test_every_head_learns_one_batch(tmp_path, name):
    """Its loss falls, its mean comes nearer to the rain than persistence, and where it rains it knows."""
    own, batch = module(name=name), moving_rain()
    before = loss_of(own, batch).detach()
    del own.log
    trainer(tmp_path, max_steps=120).fit(own, torch.utils.data.DataLoader([batch] * 120, batch_size=None))
    assert loss_of(own, batch) < 0.3 * before
    seen, rain = batch["target_mask"], batch["target"]
    persistence = (batch["input"][:, -1:] - rain)[seen].abs().mean()
    assert (own(batch["input"]) - rain)[seen].abs().mean() < 0.5 * persistence
    output = own.network(to_network_scale(SCALE, batch["input"]), LEADS)
    chance = own.head.exceedance(output, (2.0,), SCALE)
    assert chance[seen & (rain >= 2)].mean() > 0.8 and chance[seen & (rain < 2)].mean() < 0.1


@any_head
def test_every_parameter_gets_a_gradient(name):
    own = module(name=name)
    loss_of(own, moving_rain()).backward()
    assert [name for name, p in own.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_training_compares_on_the_networks_scale():
    own, batch = module(), moving_rain()
    prediction = own.network(to_network_scale(SCALE, batch["input"]), LEADS)
    error = torch.where(batch["target_mask"], prediction - SCALE.forward(batch["target"]), 0)
    weight = torch.ones_like(error)
    for threshold, heavier in ((2.0, 2.0), (5.0, 5.0), (10.0, 10.0), (30.0, 30.0)):
        weight = torch.where(batch["target"] >= threshold, heavier, weight)
    torch.testing.assert_close(loss_of(own, batch), (weight * (error**2 + error.abs())).mean())


def validated(own: NowcastModule, batches, folder: Path) -> dict[str, float]:
    loader = batches if isinstance(batches, L.LightningDataModule) else torch.utils.data.DataLoader(
        batches, batch_size=None
    )  # fmt: skip
    return trainer(folder).validate(own, loader, verbose=False)[0]


@any_head
@pytest.mark.parametrize("rubbish", [0.0, 55.0, -3.0, np.inf, np.nan])
def test_what_was_not_observed_changes_nothing(tmp_path, rubbish, name):
    own, batch = module(name=name), moving_rain()
    batch["target_mask"][:, :, :, 2:6] = False
    changed = batch | {"target": torch.where(batch["target_mask"], batch["target"], rubbish)}
    results = []
    for given in (batch, changed):
        own.zero_grad()
        loss = loss_of(own, given)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in own.parameters()])
        del own.log  # the Trainer's own again
        results.append((loss, gradients, validated(own, [given], tmp_path)))
    (loss, gradients, scores), (other_loss, other_gradients, other_scores) = results
    assert loss == other_loss and loss.isfinite()
    torch.testing.assert_close(other_gradients, gradients, rtol=0, atol=0)
    np.testing.assert_equal(other_scores, scores)


def test_an_observed_pixel_does_change_loss_and_scores(tmp_path):
    own, batch = module(), moving_rain()
    changed = batch | {"target": batch["target"].clone()}
    changed["target"][0, 0, 0, 0, 0] = 50.0
    before, after = (validated(own, [given], tmp_path) for given in (batch, changed))
    assert before["val/loss"] != after["val/loss"] and before["val/mae"] != after["val/mae"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> RadarDataModule:
    """Windows of 3 → 3 frames on 16 × 16 pixels; the validation windows fill no whole number of batches."""
    folder = tmp_path_factory.mktemp("archive")
    dataset = mock_archive(120, 16, 16, start="2026-01-01T19:00")
    dataset[RAIN].values[:, 5:, 9:] = 0.0
    write_part(dataset, folder / "a.nc")
    return RadarDataModule(
        folder,
        split=BlockSplit(block_minutes=100, fractions=(0.5, 0.25, 0.25), embargo_minutes=10),
        input_steps=3,
        lead_steps=LEADS,
        crop=8,
        samples_per_epoch=16,
        batch_size=4,
        eval_batch_size=3,
        num_workers=0,
    )


@any_head
def test_validation_equals_evaluation(data, tmp_path, name):
    """One truth: what chose the checkpoint is what the evaluation reports."""
    own = module(name=name)
    rain = {"rate": 0.35, "quantiles": 0.35}.get(name, 0.0)  # 14.5 dBZ: rain near the lowest threshold
    with torch.no_grad():
        own.network.head[-1].bias.fill_(rain)
        own.network.head[-1].bias[0] += 0.0 if name in ("rate", "quantiles") else 2.5  # most likely dry
    logged = validated(own, data, tmp_path)
    assert len(data.eval_places("val")) % 3
    forecaster = NetworkForecaster(
        own.network, own.head, SCALE, name="net", input_steps=3, lead_steps=LEADS, step_minutes=5
    )
    scores = evaluate(
        [forecaster], data.eval_batches("val"), thresholds=THRESHOLDS, lead_steps=LEADS, step_minutes=5.0
    ).isel(forecaster=0)
    assert scores.event.size == 4  # blocks of an hour, pooled as validation does
    for index, threshold in enumerate(THRESHOLDS):
        for key, name in (("csi", "csi"), ("bias", "frequency_bias")):
            expected = scores[name][index].mean("lead_time").values  # skips undefined leads, NaN where all are
            np.testing.assert_equal(np.float32(logged[f"val/{key}_{threshold:g}mm"]), np.float32(expected))
    assert 0 < logged["val/csi_0.5mm"] < 1 and np.isnan(logged["val/csi_1000mm"])
    for name in ("mae", "rmse"):
        assert logged[f"val/{name}"] == pytest.approx(float(scores[name].mean()), rel=1e-6)


def test_scores_begin_anew_with_each_validation(data, tmp_path):
    own, (first, *others) = module(), [*data.eval_batches("val")]
    alone = validated(own, [first], tmp_path)
    assert validated(own, others, tmp_path)["val/mae"] != alone["val/mae"]
    np.testing.assert_equal(validated(own, [first], tmp_path), alone)


def test_validation_does_not_depend_on_the_batches(data, tmp_path):
    own = module()
    batches = [*data.eval_batches("val")]
    single = [{k: v[i : i + 1] for k, v in batch.items()} for batch in batches for i in range(len(batch["input"]))]
    whole, parts = validated(own, batches, tmp_path), validated(own, single, tmp_path)
    assert parts == pytest.approx(whole, rel=1e-5, nan_ok=True)


def test_a_run_steps_its_schedule_once_a_batch_to_its_end(data, tmp_path):
    rates = []

    class Rates(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    own = module()
    trainer(tmp_path, max_epochs=3, callbacks=[Rates()]).fit(own, data)
    assert len(rates) == 12  # 3 epochs of 16 / 4 batches
    # warm-up of max(1, 0.05·12) = 1 step; after the last the rate is final_fraction·lr
    assert rates[0] == pytest.approx(1e-2) and rates[-1] == pytest.approx(1e-4)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("given", "loss"), [(given, loss) for given in HEADS for loss in HEADS])
def test_the_loss_of_another_head_is_refused(given, loss):
    head, loss = HEADS[given][0], HEADS[loss][1]
    make = partial(NowcastModule, None, head, SCALE, loss, None, thresholds=THRESHOLDS, lead_steps=1, step_minutes=5.0,
                   metadata={})  # fmt: skip
    if loss.num_channels == head.num_channels:
        make()
    else:
        with pytest.raises(
            ValueError, match=rf"{type(loss).__name__} compares \d channels, but {type(head).__name__}"
        ):
            make()


@any_head
def test_forward_gives_rates_in_mm_h(name):
    own, batch = module(name=name), moving_rain()
    rates = own(batch["input"])
    expected = own.head.rates(own.network(to_network_scale(SCALE, batch["input"]), LEADS), SCALE)
    assert rates.shape == batch["target"].shape
    torch.testing.assert_close(rates, expected, rtol=0, atol=0)


def test_checkpoint_carries_the_plain_data(tmp_path):
    metadata = {"version": "1", "thresholds": [0.5], "window": {"input_steps": 3}}
    fitted = trainer(tmp_path, max_steps=1)
    batch = moving_rain()
    own = module(metadata)
    fitted.fit(own, torch.utils.data.DataLoader([batch], batch_size=None))
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)  # never able to run code
    assert loaded[CHECKPOINT_KEY] == metadata
    assert set(loaded["state_dict"]) == {name for name, _ in own.named_parameters()}
