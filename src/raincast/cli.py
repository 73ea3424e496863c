"""The commands: `python train.py`, `evaluate.py`, `forecast.py`, `ingest.py`, `export.py`, or `raincast train` …

`raincast summary`, which reads and writes nothing, has no script.

Only Hydra is imported here; what a command needs is imported once its config stands.
"""

import difflib
import errno
import hashlib
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf

from raincast.commands import jobs
from raincast.system.run_folder import alone, remove_if_empty

log = logging.getLogger(__name__)

COMMANDS = ("train", "evaluate", "forecast", "ingest", "export", "summary")
USER_ERRORS = (ValueError, FloatingPointError, FileNotFoundError, FileExistsError, NotADirectoryError)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""No room, no quota, read-only."""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where torchrun, Lightning and SLURM tell a process its number."""
HYDRA_VERSION_BASE = "1.3"


def conf_dir() -> Path:
    """The folder of configs: beside src/ in a checkout, inside the package when installed from a wheel."""
    checkout = Path(__file__).resolve().parents[2] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else Path(__file__).resolve().parent / "conf"


def train() -> None:
    """Train a network."""
    _run("train")


def evaluate() -> None:
    """Score a network and baselines."""
    _run("evaluate")


def forecast() -> None:
    """Write a forecast."""
    _run("forecast")


def ingest() -> None:
    """Turn radar files into an archive."""
    _run("ingest")


def export() -> None:
    """Write a network as ONNX or as a torch.export program."""
    _run("export")


def main() -> None:
    """`raincast COMMAND [key=value …]`."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        asked = sys.argv[1] if len(sys.argv) > 1 else None
        usage = f"usage: raincast {{{','.join(COMMANDS)}}} [key=value …]\n"
        if asked in ("-h", "--help"):
            sys.stdout.write(usage)
            raise SystemExit(0)
        sys.stderr.write(f"{usage}unknown command: {asked}\n" if asked else usage)
        raise SystemExit(2)
    command = sys.argv.pop(1)
    sys.argv[0] = f"raincast {command}"
    _run(command)


def run_folder(name: str | None, resume: str | None, overrides: Sequence[str], now: str) -> str:
    """The folder of a training run: its name, what its command gives, or the time.

    With `resume` the same overrides, in any order, give the same folder.
    """
    if name is not None:
        return str(name)
    if resume is None:
        return now
    return f"auto-{hashlib.sha256(chr(10).join(sorted(overrides)).encode()).hexdigest()[:10]}"


def _run(command: str) -> None:
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    started = False

    def task(cfg: DictConfig) -> Any:
        nonlocal started
        started = True
        return _guarded(_command(command), cfg)

    if command == "train":
        sys.argv += _shared_run_dir(sys.argv[1:], os.environ)
    app = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(conf_dir()), config_name=command)(task)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except SystemExit as stop:
        if stop.code and not started:
            _suggest_keys(command, sys.argv[1:])
        raise
    except BrokenPipeError:
        if started:
            raise
        # of --help | head: nobody reads the rest, and nothing is to be said of it when the interpreter ends either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shared_run_dir(overrides: list[str], environment: Mapping[str, str]) -> list[str]:
    """Overrides that give the processes of torchrun or srun, which do not know of each other, one run folder.

    Under SLURM it is named by the job, so that a job that is queued again finds it.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, name = int(environment["RANK"]), _time_of_first
    elif "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        rank, name = int(environment["SLURM_PROCID"]), _slurm_name
    else:
        return []
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    shared = []
    if not given & {"hydra.run.dir", "hydra.sweep.dir"}:
        where = name(environment)
        if not given & {"name", "resume"}:  # these give one folder by themselves
            shared = [f"hydra.run.dir=${{paths.output_dir}}/train/{where}"]
        shared += [f"hydra.sweep.dir=${{paths.output_dir}}/sweep/{where}"]
    if rank:
        shared += ["hydra.output_subdir=null", f"hydra.job.name=train_process_{rank}"]
    return shared


def _slurm_name(environment: Mapping[str, str]) -> str:
    step = environment["SLURM_STEP_ID"]
    return f"slurm-{environment['SLURM_JOB_ID']}" + (f"-{step}" if step != "0" else "")


def _time_of_first(environment: Mapping[str, str]) -> str:
    """When torchrun's first process began, which it tells the others by the store that torchrun keeps for them."""
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise SystemExit("This torchrun keeps no store for its processes: name their folder with hydra.run.dir=…")
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch lists no exports

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    if environment["RANK"] == "0":
        # processes that torchrun starts again find the time of the first start
        now = f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
        return str(store.compare_set("raincast/began", "", now).decode())
    return str(store.get("raincast/began").decode())


def _command(name: str) -> Callable[[DictConfig], Any]:
    from importlib import import_module

    run: Callable[[DictConfig], Any] = import_module(f"raincast.commands.{name}").run
    return run


def _guarded(run: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a command; a user's error is one message, and leaves no empty run folder behind."""
    several = jobs.one_of_several()
    folder = Path(HydraConfig.get().runtime.output_dir)
    # the other processes of a run share the folder of the first
    is_first = not any(int(os.environ.get(rank, "0")) for rank in RANKS)
    locks = is_first and folder.resolve() != Path.cwd()
    try:
        _check_missing(cfg)
        with alone(folder) if locks else nullcontext():
            result = run(cfg)
        if several:
            jobs.note(result)
        return result
    except SystemExit as stop:
        if several and stop.code == 1:  # said by the command itself; the other jobs go on
            jobs.note(error="see its log")
            return math.nan
        raise
    except Exception as raised:
        # Hydra wraps what a constructor raises
        error = raised.__cause__ if isinstance(raised, InstantiationException) else raised
        known = (
            isinstance(error, (*USER_ERRORS, TypeError))
            and isinstance(raised, (*USER_ERRORS, InstantiationException))
        ) or getattr(error, "errno", None) in DISK_ERRORS
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (known or several):
            raise
        if several:  # the other jobs go on
            log.error("Error: %s", error, exc_info=None if known else raised)
            jobs.note(error=(str(error).splitlines() or [type(error).__name__])[0])
            return math.nan
        if is_first:
            remove_if_empty(folder)
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(1) from error


def _check_missing(cfg: DictConfig) -> None:
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(
            f"Not given: {', '.join(missing)}. Say, for example: {' '.join(f'{key}=…' for key in missing)}"
        )


def _suggest_keys(command: str, overrides: list[str]) -> None:
    """After Hydra refused an override: the keys that look like it."""
    from hydra import compose, initialize_config_dir

    chosen = [override for override in overrides if override.startswith(("sweep=", "launcher="))]
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        try:
            cfg = compose(command, chosen)
        except HydraException:
            return  # Hydra has named the choices there are
    known = _flat_keys(OmegaConf.to_container(cfg, resolve=False))
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if "=" in override and key not in (*known, "sweep", "launcher"):
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            if near:
                sys.stderr.write(f"There is no key {key}. Did you mean {' or '.join(near)}?\n")


def _flat_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys: list[str] = []
    for key, value in node.items():
        keys += [f"{prefix}{key}", *_flat_keys(value, f"{prefix}{key}.")]
    return keys
