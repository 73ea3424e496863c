"""`raincast summary`: for every model of the configs, and as a user types it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import REPO, compose_config, run_forked

from raincast import cli
from raincast.commands.summary import run, summarise

# lagrangian needs its head and transform: experiment=radar has them
MODELS = sorted({p.stem for p in (REPO / "conf" / "model").glob("*.yaml")} - {"lagrangian"})
EXPERIMENTS = sorted(p.stem for p in (REPO / "conf" / "experiment").glob("*.yaml"))
SMALL = ["batch_size=1", "input_steps=2", "lead_steps=2", "height=32", "device=cpu"]
PAGES = [REPO / "README.md", REPO / "docs" / "memory.md"]
COMMANDS = sorted(
    {c for page in PAGES for c in re.findall(r"^raincast summary(.*)$", page.read_text("utf-8"), re.M)}
)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_summary(model: str, tmp_path: Path) -> None:
    from raincast import assembly

    config = compose_config("summary", tmp_path, f"model={model}", *SMALL)
    summary, device = summarise(config)
    net = assembly.network(config.model)
    assert summary.parameters == sum(p.numel() for p in net.parameters())
    assert device == "cpu"
    assert summary.forecast_peak_bytes < summary.training_peak_bytes


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_gives_the_sizes(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = compose_config("train", tmp_path, f"experiment={experiment}")
    config = compose_config("summary", tmp_path, f"experiment={experiment}")
    assert (config.batch_size, config.height, config.width) == (train.data.batch_size, *[train.data.crop] * 2)
    assert config.model == train.model
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices={}))
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    cli._check_types("summary", config)  # optimizer and trainer, too, though it reads neither


def test_it_prints_layers_and_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(compose_config("summary", tmp_path, "model=convlstm_2015", *SMALL))
    printed = capsys.readouterr().out
    assert re.search(r"encoder\.0 +ConvLSTM +1×2×128×8×8 +1,844,096", printed)
    assert re.search(r"parameters +7,585,296", printed)
    assert "training step" in printed and "on cpu" in printed
    assert "…" not in printed  # nothing is cut off


def test_whole_frames_need_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.crop=null .* give height=… width=…"):
        summarise(compose_config("summary", tmp_path, "data.crop=null"))


def test_a_refusal_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """Here the folder one works in is the run's folder, which is elsewhere removed when nothing came of it."""
    (tmp_path / "mine.log").write_text("keep me", encoding="utf-8")
    ran = run_forked(tmp_path, "raincast", "summary", "batch_size=0")
    assert ran.returncode == 1
    assert ran.stderr == "Error: batch_size=0: give a whole number, at least 1.\n"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.log"]


def test_pages_show_the_command() -> None:
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("arguments", COMMANDS)
def test_the_commands_of_the_pages_compose(arguments: str, tmp_path: Path) -> None:
    overrides = [word for word in arguments.partition("#")[0].split() if word != "-m"]
    # the first of what a sweep goes through
    first = [re.sub(r"^([\w./+]+=[^,\[\]{}]+),[^\[\]{}]*$", r"\1", word) for word in overrides]
    compose_config("summary", tmp_path, *first)
