"""Bad input: one message with the value, the alternatives and the remedy, and nothing written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checking import rates_of
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from running import REPO, TINY, compose_config, run_forked

from raincast import cli
from raincast.cli import run_folder
from raincast.commands import jobs
from raincast.commands.forecast import run as forecast
from raincast.commands.train import train
from raincast.system import lock as folders


def refused(result: subprocess.CompletedProcess[str], folder: Path) -> str:
    """The message of a command that refused, once it is sure that it wrote nothing."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == []
    return result.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=radarr"], ["experiment/radarr", "radar", "smhi"]),
        (["optimizer.lrr=1"], ["optimizer.lrr", "Did you mean optimizer.lr"]),
        (["data.archive=nowhere"], ["nowhere", "does not exist", "python ingest.py"]),
    ],
)
def test_a_mistyped_command_is_answered(overrides: list[str], words: list[str], tmp_path: Path) -> None:
    message = refused(run_forked(tmp_path, "train", *overrides), tmp_path)
    assert all(word in message for word in words), message


def test_what_must_be_given_is_named(tmp_path: Path) -> None:
    message = refused(run_forked(tmp_path, "evaluate"), tmp_path)
    assert "Not given: data.archive" in message


def test_what_must_be_given_is_named_where_other_keys_refer_to_it(tmp_path: Path) -> None:
    from raincast.cli import _check_missing

    config = compose_config("train", tmp_path, "data/channels=[sun,wind]")
    with pytest.raises(ValueError, match=r"Not given: data\.channels\.wind_x\.path\. "):
        _check_missing(config)


def test_a_missing_checkpoint_is_answered(tmp_path: Path) -> None:
    message = refused(run_forked(tmp_path, "evaluate", "checkpoint=no.ckpt"), tmp_path)
    assert "There is no checkpoint no.ckpt" in message


def test_an_unknown_command_is_answered() -> None:
    found = subprocess.run([sys.executable, "-c", "from raincast.cli import main; main()", "trian"],
                           capture_output=True, text=True)  # fmt: skip
    assert found.returncode == 2
    assert "train,evaluate,forecast,ingest" in found.stderr


def test_ctrl_c_ends_a_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    # not Hydra itself, whose logging would stay in this process
    monkeypatch.setattr(cli.hydra, "main", lambda **_: lambda task: stopped)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit) as stop:
        cli.evaluate()
    assert stop.value.code == 130
    assert "Interrupted" in capsys.readouterr().err


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import raincast
    from raincast.cli import main

    monkeypatch.setattr(sys, "argv", ["raincast", "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    monkeypatch.setattr(sys, "argv", ["raincast", "train", "--version"])
    main()
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"raincast {raincast.__version__}\n" * 2


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("raincast tr", ["train", "evaluate", "forecast"]),
        ("raincast train optimizer.warmup", ["optimizer.warmup_fraction="]),
        ("raincast train model=convlstm_2", ["model=convlstm_2015", "model=convlstm_2017"]),
        ("python train.py optimizer.warmup", ["optimizer.warmup_fraction="]),
    ],
)
def test_a_shell_completes_keys_and_choices(
    line: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raincast import cli

    GlobalHydra.instance().clear()
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", [line.split()[0].replace("python", "train.py"), "-sc", "query=bash"])
    (cli.train if line.startswith("python") else cli.main)()
    assert set(offered) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(("command", "unbuffered"), [("train", ""), ("ingest", "1")])
def test_help_may_be_cut_off(command: str, unbuffered: str, tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['raincast', '{command}', '--help']; from raincast.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as head does, once it has seen enough
        said = process.stderr.read()
    assert process.returncode == 0 and not said


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from raincast.cli import train\n"
        "sys.argv = ['train.py', '--help']\n"
        "try: train()\n"
        "finally: sys.stderr.write(str([m for m in ('torch', 'lightning', 'pysteps', 'wandb') if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "experiment" in found.stdout
    assert found.stderr.strip().endswith("[]"), found.stderr[-500:]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crop=15", r"data\.crop=15 is not a multiple of the network's stride 8.*8 or 16"),
        ("data.lead_steps=400", r"No window of 403 consecutive frames"),
        ("data.lead_steps=25", r"no window of 28 frames for .*data\.input_steps"),
        ("data.batch_size=0", r"data\.batch_size=0"),
        (
            "data.batch_size=500",
            r"data\.batch_size=500 exceeds the \d+ training samples.*data\.batch_size=\d+ or less",
        ),
        ("trainer.max_epochs=0", r"trainer\.max_epochs=0 trains nothing"),
        ("metrics.goal=val/csi", r"metrics\.goal=val/csi is not logged.*val/csi_1mm"),
        ("data.split.fractions=[1,1,1]", r"fractions=\[1, 1, 1\]"),
        ("checkpoint=no.ckpt", r"There is no checkpoint no\.ckpt"),
        ("loss.weights=[1,2]", r"weights"),
    ],
)
def test_a_bad_value_is_answered(override: str, message: str, tiny_archive: Path, tmp_path: Path) -> None:
    from hydra.errors import InstantiationException

    from raincast.cli import USER_ERRORS

    config = compose_config("train", tmp_path / "run", *TINY, f"data.archive={tiny_archive}", override)
    with pytest.raises((*USER_ERRORS, InstantiationException), match=f"(?s){message}"):
        train(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_archive_that_breaks_its_contract_is_refused(tmp_path: Path) -> None:
    from raincast import schema

    broken = schema.mock_archive(4).rename({"rain_rate": "pr"})
    broken["pr"].attrs.clear()
    (tmp_path / "broken").mkdir()
    broken.to_netcdf(tmp_path / "broken" / "a.nc")
    from hydra.errors import InstantiationException

    config = compose_config("train", tmp_path / "run", *TINY, f"data.archive={tmp_path}/broken")
    with pytest.raises((ValueError, InstantiationException), match=r"(?s)rain rate.*Found: pr.*python ingest\.py"):
        train(config)


def write_input(
    folder: Path, num_times: int, *, step_minutes: float = 5.0, missing: bool = False, dry: bool = False
) -> Path:
    from raincast import schema
    from raincast.archive import write_part

    frames = schema.mock_archive(num_times, 20, 14, step_minutes=step_minutes)
    if missing:
        frames["rain_rate"][:] = float("nan")
    if dry:
        frames["rain_rate"][:] = 0.0
    write_part(frames, folder / "part.nc")
    return folder


def test_forecast_refuses_another_step(tiny_run: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in", 6, step_minutes=10)
    with pytest.raises(ValueError, match=r"steps of 5 min, .* has 10 min"):
        forecast(_forecast_config(tiny_run, source, tmp_path))


def test_forecast_refuses_a_time_without_any_frame(tiny_run: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in", 2)
    with pytest.raises(ValueError, match=r"none of the 3 frames .* 2026-02-01T00:00\. It has 2 from 2026-01-01"):
        forecast(_forecast_config(tiny_run, source, tmp_path, "init_time=2026-02-01T00:00"))


def test_forecast_refuses_frames_that_are_all_missing(tiny_run: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in", 6, missing=True)
    with pytest.raises(ValueError, match="All pixels of the frames .* are missing"):
        forecast(_forecast_config(tiny_run, source, tmp_path))


def test_forecast_refuses_other_channels(tiny_run: Path, tmp_path: Path) -> None:
    from raincast import assembly

    forecaster = assembly.forecaster_of(
        assembly.read_checkpoint(tiny_run / "checkpoints" / "last.ckpt"), device="cpu"
    )
    import numpy as np

    with pytest.raises(ValueError, match=r"3 frames, 1 channels.*\(1, 3, 2, 8, 8\)"):
        rates_of(forecaster, np.zeros((1, 3, 2, 8, 8), np.float32), 3)


def test_a_dry_input_makes_a_forecast(tiny_run: Path, tmp_path: Path) -> None:
    import xarray as xr

    written = forecast(_forecast_config(tiny_run, write_input(tmp_path / "in", 6, dry=True), tmp_path))
    with xr.open_dataset(written, decode_timedelta=True) as file:
        assert file["rain_rate"].shape == (3, 20, 14)
        assert bool(file["rain_rate"].notnull().all())


def _forecast_config(tiny_run: Path, source: Path, tmp_path: Path, *more: str):  # type: ignore[no-untyped-def]
    return compose_config(
        "forecast",
        tmp_path / "out",
        f"checkpoint={tiny_run}/checkpoints/last.ckpt",
        f"input={source}",
        "device=cpu",
        *more,
    )


def test_no_rain_at_all_trains(tmp_path: Path) -> None:
    """An archive without rain has nothing to weigh or to score; it trains all the same, and says NaN."""
    import math

    from raincast import schema
    from raincast.archive import write_part

    for day in ("01", "02", "03"):
        frames = schema.mock_archive(20, 16, 16, start=f"2026-01-{day}T00:00")
        frames["rain_rate"][:] = 0.0
        write_part(frames, tmp_path / "dry" / f"{day}.nc")
    config = compose_config(
        "train",
        tmp_path / "run",
        *TINY,
        f"data.archive={tmp_path}/dry",
        "data.crop=16",
        "trainer.max_epochs=1",
        "data.split.embargo_minutes=0",
    )
    result = train(config)
    assert math.isnan(result.metrics["val/csi_1mm"])
    assert result.best.is_file() and result.last.is_file()


def test_the_folder_of_a_run_is_its_name_its_command_or_the_time() -> None:
    overrides = ["resume=auto", "optimizer.lr=1e-3"]
    assert run_folder(None, None, overrides, "2026-01-02/03-04-05") == "2026-01-02/03-04-05"
    assert run_folder("mine", "auto", overrides, "now") == "mine"
    found = run_folder(None, "auto", overrides, "now")
    assert found == run_folder(None, "auto", overrides[::-1], "later")
    assert found != run_folder(None, "auto", ["resume=auto", "optimizer.lr=1e-4"], "now")
    assert re.fullmatch(r"auto-[0-9a-f]{10}", found)


def test_a_folder_set_in_the_place_of_hydras_is_made(tiny_archive: Path, tmp_path: Path) -> None:
    """The evaluation ended in an error when all scores were there."""
    given = [f"data.archive={tiny_archive}", "checkpoint=null", "baselines=[persistence]", "data.eval_stride=8"]
    given += ["default_data.lead_steps=2", "metrics.thresholds=[1]"]
    done = run_forked(tmp_path, "evaluate", *given, "paths.run_dir=new/folder", "resamples=40", drawn=False)
    assert done.returncode == 0 and (tmp_path / "new" / "folder" / "scores.nc").exists(), done.stderr
    refused = run_forked(tmp_path, "evaluate", "data.archive=none", "paths.run_dir=other")
    assert refused.returncode == 1 and not (tmp_path / "other").exists()


def test_runs_of_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings mixed their checkpoints, and an evaluation deleted the folder of another."""
    found = [folders.own_folder(tmp_path / "evaluate" / "2026-01-02" / "03-04-05") for _ in range(3)]
    assert [path.name for path in found] == ["03-04-05", "03-04-05-2", "03-04-05-3"]
    monkeypatch.setattr(folders, "_made", {found[1].absolute(): []})  # the second of three processes
    for path in found:
        folders.remove_if_empty(path)
    assert [path.is_dir() for path in found] == [True, False, True]


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_hydra_takes_the_folder_of_its_own(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.HydraConfig, "set_config", lambda *_: None)
    taken = tmp_path / "train" / "2026-01-02" / "03-04-05"
    taken.mkdir(parents=True)
    start = jobs.OwnFolder().on_run_start if kind == "run" else jobs.OwnFolder().on_multirun_start
    config = OmegaConf.create({"hydra": {kind: {"dir": str(taken)}, "overrides": {"hydra": []}}})
    OmegaConf.set_readonly(config, True)
    start(config)
    assert config.hydra[kind].dir == f"{taken}-2" and Path(f"{taken}-2").is_dir()
    assert config.hydra.overrides.hydra == [f"hydra.{kind}.dir='{taken}-2'"]
    start(config)
    assert config.hydra[kind].dir == f"{taken}-2", "that of a command line is as it says"


def test_a_run_folder_is_locked_while_it_is_used(tmp_path: Path) -> None:
    with folders.alone(tmp_path / "a"):
        refused = run_forked(tmp_path, "evaluate", "data.archive=none", f"hydra.run.dir={tmp_path}/a")
    assert refused.returncode == 1 and refused.stderr.startswith("Error: Another process is using the run folder")
    assert (tmp_path / "a").is_dir()
    with folders.alone(tmp_path / "a"):
        pass


def test_the_log_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    """Where the locale's text is ASCII the table of scores was left out of it."""
    code = (
        "import logging.config, sys; from omegaconf import OmegaConf\n"
        "config = OmegaConf.to_container(OmegaConf.load(sys.argv[1]))\n"
        "config['handlers']['file']['filename'] = 'train.log'\n"
        "logging.config.dictConfig(config)\n"
        "logging.getLogger('raincast').info('CSI \\u2265 1 mm/h')"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    conf = REPO / "conf" / "hydra" / "job_logging" / "raincast.yaml"
    command = [sys.executable, "-c", code, str(conf)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **ascii_only}, check=True, capture_output=True)
    assert "CSI ≥ 1 mm/h" in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_networks_archives_and_run_folders_in_the_wrong_place_are_named(tmp_path: Path) -> None:
    from raincast.archive.head import archive_files
    from raincast.checkpoint import check_there
    from raincast.ingest.readers import Auto
    from raincast.ingest.readers.knmi import KNMI

    network = tmp_path / "checkpoints" / "best.ckpt"
    network.parent.mkdir()
    network.write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"is a folder, not a checkpoint\. There are: .*best\.ckpt"):
        check_there(tmp_path)
    with pytest.raises(ValueError, match=r"best\.ckpt is a network .*not an archive"):
        archive_files(network)
    with pytest.raises(ValueError, match=r"best\.ckpt \(a network: give it as checkpoint=…\)"):
        Auto({"knmi": KNMI()}).scan(network)
    with pytest.raises(FileNotFoundError, match=r"files='.*/checkpoints/\*\*/\*' archive=data/checkpoints"):
        archive_files(network.parent)
