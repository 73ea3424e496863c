"""Wrong keys and types in a config: one message with the key, the value and what is expected."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from running import compose_config

from raincast.assembly.typed import BOUNDS, SETTINGS, check
from raincast.cli import conf_dir


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DictConfig]:
    """The config of each command."""
    sweep = {"train": ["sweep=optuna"]}
    folder = tmp_path_factory.mktemp("composed")
    commands = ("train", "evaluate", "forecast", "ingest", "export", "summary", "serve")
    return {command: compose_config(command, folder, *sweep.get(command, [])) for command in commands}


def changed(config: DictConfig, *overrides: str) -> DictConfig:
    """A copy with other values, as the command line would give them."""
    copy = config.copy()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(copy, override.key_or_group, override.value(), force_add=True)
    return copy


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "baselines=persistence", "baselines=persistence: give a list, each a text. Type baselines=[persistence]."),
        ("train", "data.crop=abc", "data.crop=abc: give a whole number or null."),
        ("train", "data.crop=12.5", "data.crop=12.5: give a whole number or null."),
        ("train", "optimizer.lr=abc", "optimizer.lr=abc: give a number."),
        ("train", "optimizer.lr=true", "optimizer.lr=true: give a number."),
        ("train", "metrics.thresholds=1", "metrics.thresholds=1: give a list, each a number. Type metrics.thresholds=[1]."),
        ("train", "metrics.thresholds=[1,x]", 'metrics.thresholds=[1, "x"]: give a list, each a number.'),
        ("train", "metrics.goal_mode=most", "metrics.goal_mode=most: give max or min."),
        ("train", "trainer.max_epochs=2.5", "trainer.max_epochs=2.5: give a whole number or null."),
        ("train", "data.split=dates", "data.split=dates: give a node with a _target_. To choose a file of conf/data/split/ type data/split=dates."),
        ("train", "loss.weights=5", "loss.weights=5: give a list, each a number. Type loss.weights=[5]."),
        ("train", "model.stages=5", "model.stages=5: give a list, each a mapping {key: value}."),
        ("train", "model.cell.peephole=pixels", "model.cell.peephole=pixels: give none or channel or pixel."),
        ("train", "+optimizer.momentum=0.9", "optimizer.momentum: adamw_warmup_cosine has no such key. There are params, "),
        ("train", "+data.cropp=64", "data.cropp: RadarData has no such key. Did you mean crop?"),
        ("train", "+optimiser.lr=1", "optimiser: nothing reads this key."),
        ("train", "+basline=[]", "basline: nothing reads this key. Did you mean baselines"),
        ("train", "+paths.dat_dir=x", "paths.dat_dir: nothing reads this key. Did you mean paths.data_dir"),
        ("train", "callbacks.last.every_minutes=ten", "callbacks.last.every_minutes=ten: give a number or null."),
        ("evaluate", "split=any", "split=any: give test or val or train or all."),
        ("evaluate", "resamples=many", "resamples=many: give a whole number."),
        ("evaluate", "data.eval_stride=x", "data.eval_stride=x: give a whole number or null."),
        ("evaluate", "baseline.steps.num_members=x", "baseline.steps.num_members=x: give a whole number."),
        ("forecast", "formats=geotiff", "formats=geotiff: give a list, each netcdf or zarr or geotiff or png. Type formats=[geotiff]."),
        ("forecast", "animation=avi", "animation=avi: give gif or mp4 or false."),
        ("forecast", "products.accumulations=30", "products.accumulations=30: give a list, each a number."),
        ("forecast", "init_time=2026", "init_time=2026: give a text. Quoted twice it is one: 'init_time=\"2026\"'."),
        ("ingest", "source.readers.cf.variable=[a]", 'source.readers.cf.variable=["a"]: give a text or null.'),
        ("ingest", "grid.coarsen=two", "grid.coarsen=two: give a whole number."),
        ("train", "data.batch_size=0", "data.batch_size=0: give a whole number, at least 1."),
        ("train", "optimizer.lr=-1", "optimizer.lr=-1: give a number, at least 0."),
        ("train", "optimizer.lr=nan", "optimizer.lr=nan: give a number, at least 0."),
        ("train", "trainer.max_epochs=-5", "trainer.max_epochs=-5: give a whole number or null, at least -1."),
        ("train", "data.seed=4294967296", "data.seed=4294967296: give a whole number, from 0 to 4294967295."),
        ("evaluate", "seed=-1", "seed=-1: give a whole number, from 0 to 4294967295."),
        ("forecast", "lead_steps=0", "lead_steps=0: give a whole number or null, at least 1."),
        ("ingest", "grid.coarsen=0", "grid.coarsen=0: give a whole number, at least 1."),
        ("ingest", "format=netcdf4", "format=netcdf4: give netcdf or zarr or onnx or torch."),
    ],
)  # fmt: skip
def test_a_wrong_type_or_key_is_named(
    command: str, override: str, message: str, composed: dict[str, DictConfig]
) -> None:
    with pytest.raises(ValueError) as raised:
        check(changed(composed[command], override))
    assert str(raised.value).startswith(message)


def test_all_faults_are_named_at_once(composed: dict[str, DictConfig]) -> None:
    with pytest.raises(ValueError) as raised:
        check(changed(composed["train"], "data.crop=abc", "optimizer.lr=abc", "baselines=persistence"))
    lines = str(raised.value).split("\n")
    assert [line.strip().partition("=")[0] for line in lines] == ["data.crop", "optimizer.lr", "baselines"]


def test_what_is_right_passes(composed: dict[str, DictConfig]) -> None:
    for config in composed.values():
        check(config)
    check(changed(composed["train"], "name=2026", "data.num_workers=0", "metrics.ignored_between=[0,nan]"))


def test_every_bound_is_of_a_key(composed: dict[str, DictConfig]) -> None:
    for key in BOUNDS:
        assert any(OmegaConf.select(config, key, default=key) != key for config in composed.values()), key


def test_every_key_has_a_type(composed: dict[str, DictConfig]) -> None:
    """What no target takes is in SETTINGS, and nothing else is."""
    for key in SETTINGS:
        assert any(OmegaConf.select(config, key, default=key) != key for config in composed.values()), key


def test_a_file_for_all_commands_may_hold_keys_of_one(composed: dict[str, DictConfig]) -> None:
    """conf/local.yaml: trainer.devices is nothing that evaluate.py knows."""
    config = changed(composed["evaluate"], "+trainer.devices=2")
    with pytest.raises(ValueError, match=r"trainer: nothing reads this key"):
        check(config)
    check(config, known=["trainer", "trainer.devices"])


def test_a_file_of_this_machine_is_read_by_every_command(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text("paths:\n  data_dir: /fast/archives\n")
    for command in ("train", "ingest", "forecast"):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose(command, [f"hydra.searchpath=[file://{tmp_path}]"])
        assert config.paths.data_dir == "/fast/archives" and config.paths.output_dir == "outputs"


@pytest.mark.parametrize("group", ["experiment", "debug", "launcher"])
def test_a_file_that_would_set_nothing_is_refused(group: str, tmp_path: Path) -> None:
    """An experiment of one's own without `# @package _global_` lands under `experiment`."""
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "mine.yaml").write_text("optimizer:\n  lr: 1.0\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "train", [f"hydra.searchpath=[file://{tmp_path}/conf]", f"{group}=mine", f"paths.run_dir={tmp_path}"]
        )
    with pytest.raises(
        ValueError, match=rf"conf/{group}/mine\.yaml would set nothing: its first line .*@package _glo"
    ):
        check(config, choices={group: "mine"})


def test_an_accelerator_that_is_not_there_is_refused_before_anything_is_read(
    composed: dict[str, DictConfig],
) -> None:
    from raincast import assembly

    config = composed["train"]
    assembly.check_machine(config)
    with pytest.raises(ValueError, match=r"trainer\.accelerator=tpu: this machine has .*cpu.*\. Use one, or auto"):
        assembly.check_machine(changed(config, "trainer.accelerator=tpu"))
