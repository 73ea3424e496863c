"""The commands: `python train.py`, `evaluate.py`, `forecast.py`, `ingest.py`, `export.py`, or `raincast train` …

`raincast summary`, which reads and writes nothing, and `raincast serve` have no script.

Only Hydra is imported here; a command's modules are imported after its config is composed.
"""

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

from raincast import __version__
from raincast.commands import command_line, jobs
from raincast.system.faults import reason_of
from raincast.system.heap import pause_collector, resume_collector
from raincast.system.lock import alone, is_first_process, make_folder, remove_if_empty
from raincast.system.paths import HYDRA_VERSION_BASE, conf_dir

log = logging.getLogger(__name__)

COMMANDS = ("train", "evaluate", "forecast", "ingest", "export", "summary", "serve")
USER_ERRORS = (ValueError, FloatingPointError, FileNotFoundError, FileExistsError, NotADirectoryError)


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
    """Run `raincast COMMAND [key=value …]`."""
    if sys.argv[1:2] == ["-sc"]:
        _complete()
        return
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        asked = sys.argv[1] if len(sys.argv) > 1 else None
        usage = f"usage: raincast {{{','.join(COMMANDS)}}} [key=value …]\n"
        if asked in ("--version", "-V"):
            sys.stdout.write(f"raincast {__version__}\n")
            raise SystemExit(0)
        if asked in ("-h", "--help"):
            sys.stdout.write(f"{usage}       raincast COMMAND --help    lists the keys of a command\n")
            raise SystemExit(0)
        sys.stderr.write(f"{usage}unknown command: {asked}\n" if asked else usage)
        raise SystemExit(2)
    command = sys.argv.pop(1)
    sys.argv[0] = f"raincast {command}"
    _run(command)


def _complete() -> None:
    """Complete a command line. Hydra can complete only a single command; here the first word is the command."""
    words = os.environ.get("COMP_LINE", "").split(maxsplit=2)
    asked = words[1] if len(words) > 1 else ""
    if "query" in sys.argv[2] and asked not in COMMANDS:
        sys.stdout.write(" ".join(COMMANDS) + "\n")
        return
    os.environ["COMP_LINE"] = " ".join(["raincast", *words[2:]]) if len(words) > 2 else "raincast "
    _run(asked or COMMANDS[0])


def run_folder(name: str | None, resume: str | None, given: Sequence[str], now: str) -> str:
    """Return the folder of a training run: its name, a hash of its overrides (with `resume`), or the time.

    With `resume` the same overrides, in any order, give the same folder.
    """
    if name is not None:
        return str(name)
    if resume is None:
        return now
    return f"auto-{hashlib.sha256(chr(10).join(sorted(given)).encode()).hexdigest()[:10]}"


def _run(command: str) -> None:
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    started = False

    def task(cfg: DictConfig) -> Any:
        nonlocal started
        started = True
        return _guarded(command, cfg)

    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"raincast {__version__}\n")
        return
    sys.argv[1:] = command_line.quoted(sys.argv[1:])
    if command == "train":
        sys.argv += _shared_run_dir(sys.argv[1:], os.environ)
    app = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(conf_dir()), config_name=command)(task)
    pause_collector()  # until the command's modules are imported
    try:
        try:
            if not _helped(command):
                app()
        finally:
            resume_collector()
            sys.stdout.flush()
    except SystemExit as stop:
        if stop.code == 1 and not started:
            for line in command_line.suggestions(command, sys.argv[1:], conf_dir(), HYDRA_VERSION_BASE):
                sys.stderr.write(f"{line}\n")
        raise
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(130) from None  # the shell's exit code for Ctrl-C
    except BrokenPipeError:
        if started:
            raise
        # --help | head: the rest is not read; redirect stdout so that the interpreter does not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _helped(command: str) -> bool:
    """Write the help if requested and return True; False leaves faulty arguments to Hydra's messages."""
    if {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        return False
    what = {"summary": "Print what a network costs: parameters, FLOPs, memory."}
    try:
        text = command_line.help_text(
            command,
            what.get(command) or str(globals()[command].__doc__),
            sys.argv[1:],
            conf_dir(),
            HYDRA_VERSION_BASE,
        )
    except HydraException:
        return False
    sys.stdout.write(text)
    return True


def _shared_run_dir(given_overrides: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return overrides that give all processes of torchrun or srun, which are independent, the same run folder.

    Under SLURM the folder is named after the job, so that a requeued job finds it.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, name = int(environment["RANK"]), _time_of_first
    elif "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        rank, name = int(environment["SLURM_PROCID"]), _slurm_name
    else:
        return []
    given = {override.lstrip("+").partition("=")[0] for override in given_overrides}
    shared = []
    if not given & {"hydra.run.dir", "hydra.sweep.dir"}:
        where = name(environment)
        if not given & {"name", "resume"}:  # these already give one folder
            shared = [f"hydra.run.dir=${{paths.output_dir}}/train/{where}"]
        shared += [f"hydra.sweep.dir=${{paths.output_dir}}/sweep/{where}"]
    if rank:
        shared += ["hydra.output_subdir=null", f"hydra.job.name=train_process_{rank}"]
    return shared


def _slurm_name(environment: Mapping[str, str]) -> str:
    step = environment["SLURM_STEP_ID"]
    return f"slurm-{environment['SLURM_JOB_ID']}" + (f"-{step}" if step != "0" else "")


def _time_of_first(environment: Mapping[str, str]) -> str:
    """Return the start time of torchrun's first process, which the others read from torchrun's store."""
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise SystemExit("This torchrun has no store for its processes: set their folder with hydra.run.dir=…")
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch lists no exports

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    if environment["RANK"] == "0":
        # restarted processes get the time of the first start
        now = f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
        return str(store.compare_set("raincast/began", "", now).decode())
    return str(store.get("raincast/began").decode())


def _command(name: str) -> Callable[[DictConfig], Any]:
    from importlib import import_module

    run: Callable[[DictConfig], Any] = import_module(f"raincast.commands.{name}").run
    return run


def _guarded(command: str, cfg: DictConfig) -> Any:
    """Run a command. A user error is shown as one message and leaves no empty run folder behind."""
    several = jobs.one_of_several()
    folder = Path(HydraConfig.get().runtime.output_dir)
    # the other processes of a run share the folder of the first
    is_first = is_first_process()
    locks = is_first and folder.resolve() != Path.cwd()
    try:
        _check_missing(cfg)
        _check_checkpoint(cfg)
        _check_types(command, cfg)
        with alone(folder) if locks else nullcontext():
            make_folder(Path(cfg.paths.run_dir))  # another folder than Hydra's, if set
            run = _command(command)
            resume_collector()
            result = run(cfg)
        if several:
            jobs.note(result)
        return result
    except SystemExit as stop:
        if several and stop.code == 1:  # the command has already reported it; the other jobs continue
            jobs.note(error="see its log")
            return math.nan
        raise
    except Exception as raised:
        # Hydra wraps errors of constructors
        error = raised.__cause__ if isinstance(raised, InstantiationException) else raised
        known = isinstance(error, (*USER_ERRORS, TypeError)) and isinstance(
            raised, (*USER_ERRORS, InstantiationException)
        )
        machine = None if known else reason_of(error or raised)
        known = known or machine is not None or getattr(error, "errno", None) in jobs.SYSTEM_ERRORS
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (known or several):
            raise
        if several:  # the other jobs continue
            log.error("Error: %s", jobs.said(error), exc_info=None if known else raised)
            jobs.note(error=(jobs.said(error).splitlines() or [type(error).__name__])[0])
            return math.nan
        if is_first:
            remove_if_empty(folder)
            remove_if_empty(Path(cfg.paths.run_dir))
        sys.stderr.write(f"Error: {machine or jobs.said(error)}\n")
        raise SystemExit(1) from error


def _check_missing(cfg: DictConfig) -> None:
    # unresolved: an interpolation of a missing key would raise
    written = OmegaConf.to_container(cfg, resolve=False)
    missing = [key for key, value in command_line.flat_items(written) if value == "???"]
    if missing:
        raise ValueError(
            f"Not given: {', '.join(missing)}. Set, for example: {' '.join(f'{key}=…' for key in missing)}"
        )


def _check_checkpoint(cfg: DictConfig) -> None:
    """Check the checkpoint's path early, before slow imports."""
    from raincast.checkpoint import BOX, check_there

    for key in ("checkpoint", "warm_start"):
        path = OmegaConf.select(cfg, key)
        if isinstance(path, str) and path != BOX:
            check_there(path)


def _check_types(command: str, cfg: DictConfig) -> None:
    from raincast.assembly.typed import check

    # nodes that a command does not use are not imported
    unused = {
        "summary": ("data", "logger", "callbacks", "optimizer", "trainer", "baselines", "metrics"),
        "ingest": () if cfg.get("audit") else ("data",),
    }
    files = [path for path in (conf_dir() / f"{command}.yaml", conf_dir() / "local.yaml") if path.is_file()]
    known = [key for path in files for key in command_line.flat_keys(OmegaConf.to_container(OmegaConf.load(path)))]
    check(cfg, skip=unused.get(command, ()), known=known, choices=HydraConfig.get().runtime.choices)
