"""`sweep=optuna`: workers that go on whatever happens to a trial, and what they leave."""

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy
import optuna
import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from running import REPO, TINY, compose_config, composed

from raincast import assembly
from raincast.commands.train import train
from raincast.sweeps import trials
from raincast.sweeps.callback import TrialCallback
from raincast.sweeps.study import LINK, open_storage
from raincast.sweeps.trials import (
    OUTPUT,
    Goal,
    TrialOutcome,
    read_outcome,
    run_process,
    trial_command,
    why_it_died,
)
from raincast.sweeps.worker import run

pytestmark = pytest.mark.usefixtures("undrawn")
LR = ["~sweep.space", '+sweep.space={optimizer.lr:"tag(log, interval(1e-3, 1e-1))"}']
RunTrial = Callable[[Sequence[str], Path, Mapping[str, str]], int]


@contextmanager
def launched(folder: Path, *overrides: str) -> Iterator[DictConfig]:
    """The config of a worker, as Hydra hands it to the command; those of its trials are composed quickly."""
    given = ["experiment=convlstm", "sweep=convlstm", f"paths.output_dir={folder}", *overrides]
    cfg = composed("train", given, with_hydra=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raincast.sweeps.worker.compose", composed)
        try:
            yield cfg
        finally:
            HydraConfig.instance().cfg = None


@pytest.fixture(autouse=True)
def plain_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, but where the test is about them."""
    if "page" not in request.node.name:
        monkeypatch.setattr("raincast.sweeps.report.pictures", lambda sweep: {})


def sweep(folder: Path, run_trial: RunTrial, *overrides: str) -> float:
    with launched(folder, *LR, *overrides) as cfg:
        return run(cfg, run_trial)


def value_of(command: Sequence[str], key: str) -> str:
    return next(word for word in command if word.startswith(f"{key}=")).partition("=")[2]


def trial_that_scores(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> int:
    """In the place of a training run: the higher the learning rate the better; reports two validations."""
    lr = float(value_of(command, "optimizer.lr"))
    link = json.loads(environment[LINK])
    study = optuna.load_study(study_name=link["study"], storage=open_storage(link["storage"]))
    trial = optuna.trial.Trial(study, link["trial_id"])
    for step in (1, 2):
        trial.report(lr * step, step)
    metrics = {
        "val/loss": 1.0,
        "val/csi_1mm": 2 * lr,
        "val/csi_10mm": 0.1 - lr,
        "val/bias_error_1mm": 0.5,
        "latency_ms": 5.0,
    }
    TrialOutcome(trials.COMPLETE, epochs=2, validations=2, metrics=metrics).write(run_dir)
    return 0


def rows(folder: Path, study: str = "default") -> list[dict[str, str]]:
    with (folder / "sweep" / study / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_leaves_a_table_a_page_and_the_winners_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "raincast"):
        best = sweep(tmp_path, trial_that_scores, "sweep.trials=5", "seed=7", "data.crop=64")
    table = rows(tmp_path)
    assert [row["state"] for row in table] == ["complete"] * 5
    assert best == max(float(row["val/csi_1mm"]) for row in table)
    winner = max(table, key=lambda row: float(row["val/csi_1mm"]))
    command = winner["command"]
    assert command == (
        f"python train.py -m experiment=convlstm paths.output_dir={tmp_path} data.crop=64 "
        f"optimizer.lr={winner['optimizer.lr']} seed=1,2,3,4,5"
    )
    assert command in caplog.text
    page = (tmp_path / "sweep" / "default" / "sweep.html").read_text(encoding="utf-8")
    assert command in page
    for title in ("The course of the sweep", "Validation curves", "Importance of each parameter", "All trials"):
        assert title in page
    assert page.count("data:image/png;base64,") == 4
    assert "://" not in page and "<script src" not in page
    # finished: the same command adds nothing
    assert sweep(tmp_path, trial_that_scores, "sweep.trials=5", "seed=7", "data.crop=64") == best
    assert len(rows(tmp_path)) == 5


def test_with_a_seed_a_sweep_comes_again_and_goes_on_with_other_trials(tmp_path: Path) -> None:
    def drawn(name: str, *trials: int, seed: int = 1) -> list[str]:
        for number in trials:
            sweep(tmp_path / name, trial_that_scores, f"sweep.trials={number}", f"sweep.sampler.seed={seed}")
        return [row["optimizer.lr"] for row in sorted(rows(tmp_path / name), key=lambda row: int(row["trial"]))]

    whole = drawn("whole", 4)
    assert len(set(whole)) == 4
    assert drawn("again", 2, 4) == whole
    assert not set(drawn("other", 2, seed=2)[1:]) & set(whole[1:]), "the first is the config's own"


def test_a_trial_that_fails_is_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    endings = iter(["memory", "killed", "nan", "wordless", "undefined", "pruned", "good"])

    def run_trial(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> int:
        ending = next(endings)
        run_dir.mkdir(parents=True)
        if ending == "memory":
            text = "Traceback …\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n\nwandb: synced\n"
            (run_dir / OUTPUT).write_text(text)
            return 1
        if ending == "nan":
            TrialOutcome(trials.FAILED, "val/loss is nan after epoch 2", 2, 2).write(run_dir)
        if ending == "undefined":
            TrialOutcome(trials.COMPLETE, metrics={"val/csi_1mm": float("nan")}).write(run_dir)
        if ending == "pruned":
            TrialOutcome(trials.PRUNED, epochs=1, metrics={"val/csi_1mm": 0.0}).write(run_dir)
        return (
            {"killed": -9}.get(ending, 0) if ending != "good" else trial_that_scores(command, run_dir, environment)
        )

    sweep(tmp_path, run_trial, "sweep.trials=7", "sweep.max_failures=6")
    table = rows(tmp_path)
    assert [row["state"] for row in table] == ["failed"] * 5 + ["pruned", "complete"]
    assert [row["note"].removeprefix("the config's own values; ") for row in table[:5]] == [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "killed by SIGKILL, perhaps because memory ran out",
        "val/loss is nan after epoch 2",
        "it ended before a validation",
        "val/csi_1mm is nan",
    ]


def test_the_first_trial_has_the_configs_own_choices_and_says_what_was_drawn(tmp_path: Path) -> None:
    """A head is a file of the config: drawn at random, its trial passed for the config's own."""
    for seed in (1, 2, 3):
        space = [
            "~sweep.space",
            "+sweep.space={head:'choice(ordinal,rate,quantiles)',loss.mae_weight:'interval(2,3)'}",
        ]
        with launched(tmp_path / str(seed), *space, f"sweep.sampler.seed={seed}", "sweep.trials=1") as cfg:
            run(cfg, lambda command, run_dir, environment: 0)
        (row,) = rows(tmp_path / str(seed))
        assert row["head"] == "rate" and row["note"].startswith("the config's own values but for loss.mae_weight")


def test_a_bad_combination_is_a_failed_trial(tmp_path: Path) -> None:
    space = ["~sweep.space", "+sweep.space={head:'choice(rate,nohead)'}", "sweep.sampler.seed=1"]
    with launched(tmp_path, *space, "sweep.trials=6") as cfg:
        run(cfg, _always(0.5))
    table = rows(tmp_path)
    assert {row["state"] for row in table if row["head"] == "rate"} == {"complete"}
    failed = [row for row in table if row["head"] == "nohead"]
    assert failed and all(row["state"] == "failed" and "nohead" in row["note"] for row in failed)


def test_failures_one_after_the_other_stop_the_worker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 trials failed one after the other, .*killed by SIGKILL"):
        sweep(tmp_path, lambda *_: -9, "sweep.max_failures=3")
    assert len(rows(tmp_path)) == 3


def test_a_worker_that_is_stopped_leaves_its_trial_to_the_next(tmp_path: Path) -> None:
    def stopped(command: Sequence[str], *_: Any) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, stopped, "sweep.trials=2")
    assert [row["state"] for row in rows(tmp_path)] == ["failed", "to be run"]
    sweep(tmp_path, trial_that_scores, "sweep.trials=2")
    table = rows(tmp_path)
    assert [row["state"] for row in table] == ["failed", "complete", "complete"]
    assert table[0]["optimizer.lr"] == table[1]["optimizer.lr"]
    assert table[0]["note"] == "the config's own values; its worker was stopped; tried again"


def test_a_run_that_was_asked_to_leave_is_tried_again(tmp_path: Path) -> None:
    """75 is what train.py says after SIGTERM."""
    codes = iter([75, 0])

    def run_trial(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> int:
        return next(codes) or trial_that_scores(command, run_dir, environment)

    sweep(tmp_path, run_trial, "sweep.trials=1")
    assert [(row["state"], row["note"].rpartition("; ")[2]) for row in rows(tmp_path)] == [
        ("failed", "tried again"),
        ("complete", "trial 0 again"),
    ]


def test_several_goals_end_in_a_page_with_a_pareto_table(tmp_path: Path) -> None:
    sweep(tmp_path, trial_that_scores, "sweep=pareto", "sweep.trials=4", "sweep.study=front")
    table = rows(tmp_path, "front")
    assert {row["val/bias_error_1mm"] for row in table} == {"0.5"}
    page = (tmp_path / "sweep" / "front" / "sweep.html").read_text(encoding="utf-8")
    assert "no other is better in every goal" in page and "Goals against each other" in page
    # CSI at 1 mm/h rises as that at 10 mm/h falls: no trial beats another
    front = page.rpartition("in every goal")[2].partition("</table>")[0]
    assert front.count("<tr>") == 1 + 4


def test_what_the_command_line_gives_is_not_searched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    commands = []

    def run_trial(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> int:
        commands.append(command)
        return _always(0.5)(command, run_dir, environment)

    with launched(tmp_path, "sweep.trials=1", "loss.mae_weight=2", "logger=wandb", "sweep.gpus=[3]") as cfg:
        with caplog.at_level("INFO", "raincast"):
            run(cfg, run_trial)
        assert "loss.mae_weight is given on the command line" in caplog.text
    (command,) = commands
    assert value_of(command, "loss.mae_weight") == "2"
    assert not [word for word in command if "sweep" in word.partition("=")[0]]
    # the default space: both levels of the network change, and wandb groups the trials
    stages = value_of(command, "model.stages")
    assert stages.count("hidden_channels") == 2
    assert value_of(command, "logger.wandb.group") == "default"
    assert value_of(command, "logger.wandb.name") == "default-0"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one trial."""
    folder = tmp_path_factory.mktemp("begun")
    sweep(folder, _always(0.5), "sweep.trials=1")
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.crop=64"], r"data\.crop: 96 there, 64 here.*sweep\.study=NAME"),
        (["model=convlstm"], r"is of another config: .*model\.patch: 4 there, 1 here"),
        (["sweep.space={optimizer.lr:'0.1'}"], r"one value, nothing to search"),
        (["optimizer.lr=0.1"], r"nothing to search; give"),
        (["sweep.goals=[val/bias_1mm]"], r"best at 1: take val/bias_error_1mm"),
        (["sweep.goals=[]"], r"sweep\.goals must name"),
        (["sweep.goals=[latency_ms]"], r"sweep\.pruner=null"),
    ],
)
def test_a_sweep_that_cannot_be_is_answered(overrides: list[str], message: str, begun: Path) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sweep(begun, _always(0.5), "sweep.trials=2", *overrides)
    assert len(rows(begun)) == 1


def test_where_a_worker_is_makes_no_other_sweep(tmp_path: Path) -> None:
    sweep(tmp_path, _always(0.5), "sweep.trials=1", "data.archive=/here/knmi")
    elsewhere = ["data.archive=/there/knmi", "logger=csv", "data.num_workers=0", "trainer.accelerator=cpu"]
    sweep(tmp_path, _always(0.5), "sweep.trials=2", *elsewhere)
    assert len(rows(tmp_path)) == 2
    with pytest.raises(ValueError, match=r"data\.archive: knmi there, smhi here"):
        sweep(tmp_path, _always(0.5), "sweep.trials=3", "data.archive=/there/smhi")


def _always(score: float) -> RunTrial:
    def run_trial(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> int:
        TrialOutcome(trials.COMPLETE, epochs=1, metrics={"val/loss": 1.0, "val/csi_1mm": score}).write(run_dir)
        return 0

    return run_trial


def test_a_trial_is_a_process_of_its_own(tmp_path: Path) -> None:
    code = "import os, sys; print('Error: ' + os.environ['LINK']); sys.exit(3)"
    assert run_process([sys.executable, "-c", code], tmp_path, {"LINK": "here"}) == 3
    assert why_it_died(3, tmp_path) == "Error: here"
    assert run_process([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path, {}) == -9
    assert trial_command(["a=1"])[1:] == ["-m", "raincast.trial", "a=1"]


def trial_config(run_dir: Path, archive: Path, storage: Path, pruner: str, *overrides: str) -> DictConfig:
    callback = (
        "{_target_:raincast.sweeps.callback.TrialCallback,run_dir:'${paths.run_dir}',monitor:'${metrics.goal}',mode:max,"
        "goals:[{_target_:raincast.sweeps.trials.Goal,score:val/mae,want:min},"
        "{_target_:raincast.sweeps.trials.Goal,score:latency_ms,want:min}],pruner:" + pruner + "}"
    )
    return compose_config(
        "train", run_dir, *TINY, f"data.archive={archive}", f"+callbacks.trial={callback}", *overrides
    )


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    """A study with one trial that waits for the run of this process."""
    storage = str(tmp_path / "study.journal")
    study = optuna.create_study(storage=open_storage(storage), study_name="s", direction="minimize")
    place = {"storage": storage, "study": "s", "trial_id": study.ask()._trial_id, "parent": os.getppid()}
    monkeypatch.setenv(LINK, json.dumps(place))
    return study


def test_a_run_reports_each_validation_and_measures_its_latency(
    link: optuna.Study, tiny_archive: Path, tmp_path: Path
) -> None:
    found = train(trial_config(tmp_path / "run", tiny_archive, tmp_path, "null", "trainer.max_epochs=3"))
    told = read_outcome(tmp_path / "run")
    assert (told.state, told.epochs, told.validations) == (trials.COMPLETE, 3, 3)
    curve = link.trials[0].intermediate_values
    assert list(curve) == [0, 1, 2]  # as pruners count
    # CSI is 0 throughout, so that the first epoch is the best
    assert told.metrics["val/mae"] == pytest.approx(curve[told.best_epoch - 1])
    assert told.metrics["latency_ms"] > 0
    assert found.metrics["val/mae"] == pytest.approx(curve[2])


def test_a_poor_run_is_pruned(link: optuna.Study, tiny_archive: Path, tmp_path: Path) -> None:
    pruner = "{_target_:optuna.pruners.ThresholdPruner,upper:1e-6}"
    train(trial_config(tmp_path / "run", tiny_archive, tmp_path, pruner, "trainer.max_epochs=3"))
    told = read_outcome(tmp_path / "run")
    assert (told.state, told.validations) == (trials.PRUNED, 1)
    assert list(link.trials[0].intermediate_values) == [0]


def test_a_run_whose_loss_is_no_number_fails(tmp_path: Path) -> None:
    callback = TrialCallback(str(tmp_path), "val/csi_1mm", "max", [Goal("val/csi_1mm")])
    trainer: Any = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        current_epoch=1,
        callback_metrics={"val/loss": math.nan, "val/csi_1mm": 0.5},
        strategy=SimpleNamespace(broadcast=lambda value: value),
        should_stop=False,
    )
    callback.on_validation_end(trainer, None)  # type: ignore[arg-type]
    told = read_outcome(tmp_path)
    assert trainer.should_stop
    assert told.state == trials.FAILED and told.reason == "val/loss is nan after epoch 2"


def test_a_trial_ends_with_its_worker(
    link: optuna.Study, tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = json.loads(os.environ[LINK]) | {"parent": 1 + os.getppid()}
    monkeypatch.setenv(LINK, json.dumps(place))
    with pytest.raises(SystemExit, match="worker of this trial has died"):
        train(trial_config(tmp_path / "run", tiny_archive, tmp_path, "null"))
    assert link.trials[0].intermediate_values == {}


def spoil_rain(path: Path) -> None:
    """Whoever reads the rain of the day file at `path` gets an error; its times can still be read."""
    with h5py.File(path) as file:
        rain = file["rain_rate"]
        chunks = [rain.id.get_chunk_info(number) for number in range(rain.id.get_num_chunks())]
    with path.open("r+b") as raw:
        for chunk in chunks:
            raw.seek(chunk.byte_offset)
            raw.write(b"\xff" * chunk.size)


def test_a_sweep_never_reads_the_test_split(tiny_archive: Path, tmp_path: Path) -> None:
    archive = shutil.copytree(tiny_archive, tmp_path / "spoilt")
    days = sorted(archive.glob("*.nc"))
    spoil_rain(days[2])
    first = [str(numpy.datetime64(days[0].stem) + day) for day in range(4)]
    split = ["data/split=dates", *(
        f"data.split.{name}=[[{begin},{end}]]"
        for name, begin, end in zip(("train", "val", "test"), first[:3], first[1:], strict=True)
    )]  # fmt: skip
    fixed = [*TINY, f"data.archive={archive}", *split, "trainer.max_epochs=1"]

    def in_this_process(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> int:
        overrides = [word for word in command[3:] if not word.startswith("hydra.run.dir=")]
        link = json.loads(environment[LINK]) | {"parent": os.getppid()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(LINK, json.dumps(link))
            config = composed("train", [*overrides, f"paths.run_dir={run_dir}"])
            train(config)
            data = assembly.datamodule(config, archive)
        data.setup("test")
        with pytest.raises(ValueError, match=r"2026-06-03\.nc cannot be read"):
            data.eval_batches("test").__iter__().__next__()
        return 0

    sweep(
        tmp_path,
        in_this_process,
        *(o for o in fixed if not o.startswith(("optimizer.lr", "experiment"))),
        "sweep.trials=1",
    )
    assert [row["state"] for row in rows(tmp_path)] == ["complete"]


def test_the_command_of_a_wandb_agent_composes(tmp_path: Path) -> None:
    """As wandb itself makes it of the YAML, at both ends of each parameter."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    agent = yaml.safe_load((REPO / "conf" / "sweep" / "wandb.yml").read_text(encoding="utf-8"))
    assert (REPO / agent["program"]).is_file()
    for end in (0, -1):
        values = {
            key: {"value": found["values"][end] if "values" in found else found[("min", "max")[end]]}
            for key, found in agent["parameters"].items()
        }
        words = create_sweep_command(list(agent["command"]))
        own = words[words.index("${program}") + 1 :]
        place = own.index("${args_no_hyphens}")
        overrides = [
            *own[:place],
            *create_sweep_command_args({"args": values})["args_no_hyphens"],
            *own[place + 1 :],
        ]
        config = compose_config("train", tmp_path, *overrides)
        assert config.optimizer.lr == values["optimizer.lr"]["value"]
        assert config.loss.power == values["loss.power"]["value"]
        assert config.logger.wandb.offline is False
        assert config.metrics.goal == agent["metric"]["name"]
