"""What a person types: paths of any letters, mistyped keys, `--help`."""

import errno
import logging
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from raincast.cli import HYDRA_VERSION_BASE, conf_dir
from raincast.commands import jobs, report
from raincast.commands.command_line import help_text, quoted, suggestions
from raincast.sweeps.report import again_command
from raincast.system.paths import as_typed


@pytest.mark.parametrize(
    "path",
    [
        "odd/ünï",
        "a=b/c.h5",
        "radar (1)/*.h5",
        "radar/[0-2]*.h5",
        "[0-2]*.h5",
        "雨/2026-*.nc",
        "it's/*.h5",
        "a\\'b",
        "{a,b}.h5",
        "a: b.h5",
        "ends in \\",
        "plain/*.h5",
        "two words/a.nc",
    ],
)
def test_a_path_arrives_as_it_was_typed(path: str) -> None:
    """Without quotes of one's own, though Hydra's grammar refuses most of them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("ingest", quoted([f"files={path}", "source=cf", f"archive={path}"]))
    assert (cfg.files, cfg.archive) == (path, path)


def test_several_patterns_for_files_need_no_quotes() -> None:
    assert quoted(["files=a/*.h5,b/*.h5"]) == ["files='a/*.h5,b/*.h5'"]
    assert quoted(["data.channels.wind.path=a,b"]) == ["data.channels.wind.path='a,b'"]
    kept = ["files=[a,b]", "files='a,b'", "archive=a,b", "input=a.nc"]
    assert quoted(kept) == kept, "lists, quotes of one's own, and keys that take one path"


def test_what_the_grammar_knows_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [
        "baselines=[a,b]", "data.more=[{archive: x}]", "name=null", "+x=1", "~data.crop", "-m", "optimizer.lr=1e-3,1e-4",
        "files='odd (1)'", "optimizer.lr=interval(1e-4, 1e-2)", "--config-dir=a(b)", "plain",
    ]  # fmt: skip
    assert quoted(kept) == kept
    assert quoted(["-m", "files=a (1),b (2)"])[1] == "files=a (1),b (2)", "a comma in a multirun separates values"


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("ingest", ["source=cf", "source.step_minutes=5", "fles=odd"], ["There is no key fles. Did you mean files\\?"]),
        ("train", ["experimnt=radar"], ["There is no key experimnt. Did you mean experiment\\?"]),
        ("train", ["lr=1e-3"], [r"There is no key lr\. Did you mean optimizer\.lr.*"]),
        ("train", ["batchsize=4"], [r"There is no key batchsize\. Did you mean data\.batch_size.*"]),
        ("train", ["optimiser.lr=1"], [r"There is no key optimiser\.lr\. Did you mean optimizer\.lr.*"]),
        ("train", ["data.split.seed=1", "data/split=events", "data.split.events=x"], []),
        ("train", ["data/split=events", "data.split.event=x"], [r"There is no key data\.split\.event\. Did you mean data\.split\.events.*"]),
        ("train", ["experiment=radar", "+x=1", "~name", "sweep=optuna", "sweep.trials=3"], []),
        ("train", ["hydra.run.dir=here", "xyzzy=1"], ["There is no key xyzzy."]),
        ("forecast", ["data/knmi"], ["data/knmi is not key=value."]),
        ("train", ["xyzzy=1"], ["There is no key xyzzy."]),
    ],
)  # fmt: skip
def test_a_mistyped_key_is_named_and_none_that_was_right(
    command: str, arguments: list[str], expected: list[str]
) -> None:
    GlobalHydra.instance().clear()
    found = list(suggestions(command, arguments, conf_dir(), HYDRA_VERSION_BASE))
    assert len(found) == len(expected)
    assert all(re.fullmatch(want, line) for want, line in zip(expected, found, strict=True)), found


def test_help_shows_the_comments_of_the_configs() -> None:
    GlobalHydra.instance().clear()
    text = help_text(
        "train",
        "Train a network.",
        ["--help", "experiment=radar", "optimizer.lr=5e-4"],
        conf_dir(),
        HYDRA_VERSION_BASE,
    )
    assert text.startswith("Train a network.\n")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 130
    assert any(re.match(r"  lr: 0\.0005\b", line) for line in lines), "the value that is given"
    assert "  warmup_fraction: 0.05  # share of all steps" in lines
    assert any(line.startswith("name: null  # of the run") or "# of the run: its folder" in line for line in lines)
    samples = next(number for number, line in enumerate(lines) if line.startswith("  samples_per_epoch: 128"))
    about = " ".join(line.strip(" #") for line in lines[samples - 2 : samples + 1])
    assert "crops drawn per epoch" in about and "(here: short epochs, so that progress shows" in about
    assert any(line.startswith("    every_minutes: 10  # the same by the clock") for line in lines)
    assert any(re.match(r"  model=convlstm_small +The layout of", line) for line in lines)
    assert any(line.strip() == "experiment=radar" or line.startswith("  experiment=radar ") for line in lines)
    forecast = help_text("forecast", "", ["--help"], conf_dir(), HYDRA_VERSION_BASE)
    assert (
        "at which it is calibrated or, if its head gives probabilities, was scored in training; []: never"
        in " ".join(part.strip(" #") for part in forecast.splitlines())
    ), "a comment that goes on in the next line"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    for folder, reason in (
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/sys/raincast/x"), "Operation not"),
    ):
        if folder.parts[1] == "sys" and not Path("/sys").is_dir():
            continue
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            folders = quoted([f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"])
            config = compose("ingest", folders, return_hydra_config=True)
        for begin in (jobs.OwnFolder().on_run_start, jobs.OwnFolder().on_multirun_start):
            with pytest.raises(SystemExit, match=rf"Error: {reason}.*: .*paths\.output_dir="):
                begin(config)


def test_an_error_about_a_file_names_it() -> None:
    assert jobs.said(PermissionError(errno.EACCES, "Permission denied", "a/b.nc")) == "Permission denied: a/b.nc"
    assert jobs.said(ValueError("plain")) == "plain"
    assert {errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC} <= set(jobs.SYSTEM_ERRORS)


def test_commands_in_messages_are_those_that_this_user_types(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Next: python train.py experiment=radar, then python evaluate.py; python my_train.py stays"
    assert as_typed(text) == text, "in the repository"
    installed = "Next: raincast train experiment=radar, then raincast evaluate; python my_train.py stays"
    monkeypatch.setattr("raincast.system.paths.CHECKOUT", False)
    assert as_typed(text) == installed == jobs.said(ValueError(text))
    assert again_command(["optimizer.lr=1e-3"]).startswith("raincast train -m optimizer.lr=1e-3 seed=")
    record = logging.LogRecord("raincast", logging.INFO, "", 0, text, None, None)
    assert jobs.Formatter("%(message)s").format(record) == installed


def test_the_next_command_is_typed_as_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report.next_command(Path("a b/best.ckpt"), "odd (2)=ü")
    typed = shlex.split(caplog.messages[-1].splitlines()[-1])
    assert typed == ["python", "evaluate.py", "checkpoint=a b/best.ckpt", "data.archive=odd (2)=ü"]
    assert quoted(typed[2:])[1] == "data.archive='odd (2)=ü'"
