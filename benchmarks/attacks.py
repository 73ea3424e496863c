"""Attacks and faults: how many were tried, and how many the code held, before it was mended and now.

    python benchmarks/attacks.py                 # the code of this checkout
    python benchmarks/attacks.py --before        # the code before the commit that mended each row
    python benchmarks/attacks.py --table         # both, from the files that these leave

Each row is a choice of tests, one parameter an attack. For `--before` the commit's own tests run on its parent, in
a git worktree, with a time limit each, and 8 GiB of memory: what hangs or takes more did not hold. What the tests
import and was not there yet raises an error where it is used. A test fails where code ran or a wrong value was
used, and also where an error did not say what was wrong, or a function that the test calls was not there yet. A
count of 0 before says that each test can fail, not that each attack succeeded.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
SECONDS, GIB = 120, 8


@dataclass(frozen=True)
class Row:
    """Tests of `files` that match `which`, pytest's -k.

    `mended`: the commit that added them with the remedy; empty: not run on older code.
    """

    name: str
    mended: str
    files: tuple[str, ...]
    which: str = ""


CHECKPOINTS, EXPORTED = "tests/attacks/test_checkpoints.py", "tests/attacks/test_exported.py"
ROWS = (
    Row(
        "1 code in a checkpoint's config",
        "6fd0f3e",
        (CHECKPOINTS,),
        "resolved_or_called or classes_of_the_table",
    ),
    Row(
        "1 text and zip of a checkpoint without bounds",
        "6fd0f3e",
        (CHECKPOINTS,),
        "text_of_a_config or right_kind or larger_network or compressed_checkpoint or weights_alone",
    ),
    Row("2 code in a .pt2", "6fd0f3e", (EXPORTED,)),
    Row("3 damaged or NaN weights", "6fd0f3e", (CHECKPOINTS,), "flipped or not_finite"),
    Row("3 a network that gives NaN", "051c8fa", ("tests/forecasting/test_gaps.py",), "no_numbers"),
    Row("4 two runs in the same second", "6fd0f3e", ("tests/test_cli.py",), "same_second"),
    Row(
        "5 the watcher: FIFOs, clocks, emptied files, kills",
        "7864742",
        ("tests/live/test_folder.py", "tests/live/test_watcher.py"),
        "regular or fifo or slow_clock or set_back or emptied or killed_within or exit_code",
    ),
    Row(
        "6 unbounded unpacking, links out of a file",
        "9a7555c",
        ("tests/ingest/test_limits.py",),
        "refused or not_read or points",
    ),
    Row(
        "7 files that a power cut left",
        "6fd0f3e",
        ("tests/evaluation/test_engine.py", "tests/models/test_sequence.py"),
        "power_cut or broken_library",
    ),
    Row("8 whole files called damaged", "55bab42", ("tests/test_faults.py",), "handles"),
    Row("9 absurd values", "746279b", ("tests/test_absurd.py",)),
    Row("10 full disk, no memory", "55bab42", ("tests/test_faults.py",), "disk or reasons"),
    Row(
        "11 moved runs, plug-ins that exit, ASCII",
        "6233de5",
        ("tests/test_cli.py", "tests/training/test_checkpointing.py", "tests/ingest/test_plugin.py"),
        "utf_8 or was_moved or broken_package",
    ),
    Row(
        "12 releases with known vulnerabilities",
        "6233de5",
        ("tests/test_packaging.py",),
        "vulnerabilities or hashes",
    ),
    Row("13 Optuna studies from strangers", "", ("tests/attacks/test_studies.py",)),
    Row("13 a kernel planted in a shared cache", "", ("tests/models/test_sequence.py",), "planted"),
    Row("13 file systems without locks", "", ("tests/system/test_system.py",), "lock"),
)  # fmt: skip


ABSENT = '''
"""Modules and names of raincast that tests import and that are not there yet: an error where they are used."""
import builtins, sys, types

real = builtins.__import__

class Absent:
    def __init__(self, *_, **__):
        raise AttributeError("this was not there yet")

def lenient(name, globals=None, locals=None, fromlist=(), level=0):
    for _ in range(30):
        try:
            found = real(name, globals, locals, fromlist, level)
            break
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("raincast"):
                raise
            module = types.ModuleType(error.name)
            module.__path__, module.__getattr__ = [], lambda name: Absent
            sys.modules[error.name] = module
            parent, _, last = error.name.rpartition(".")
            setattr(sys.modules[parent], last, module)
    if name.startswith("raincast"):
        for one in fromlist or ():
            if one != "*" and not hasattr(found, one):
                setattr(found, one, Absent)
    return found

builtins.__import__ = lenient
'''


def held(tree: Path, row: Row, scratch: Path, *more: str) -> tuple[int, int, str]:
    """How many of a row's tests passed in `tree`, how many there were, and why there were none."""
    report = scratch / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [
        f"--timeout={SECONDS}",
        "--timeout-method=signal",
        "-o",
        "timeout_func_only=true",
        *more,
        *row.files,
    ]
    command += ["-k", row.which] if row.which else []
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=20 * SECONDS,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (GIB * 2**30, GIB * 2**30)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 0, 0, f"ended after {20 * SECONDS} s"
    if not report.exists():  # the interpreter itself died
        return 0, 0, (done.stdout + done.stderr).strip()[-200:] or f"exit code {done.returncode}"
    cases = [case for case in ET.parse(report).iter("testcase") if case.find("skipped") is None]  # our own file
    errors = [case for case in cases if case.get("classname") == ""]  # not collected
    if errors:
        return 0, 0, "the tests cannot be imported there"
    begun = [case for case in cases if case.find("error") is None]  # else what they need failed
    failed = sum(case.find("failure") is not None for case in begun)
    return len(begun) - failed, len(begun), "" if len(begun) == len(cases) else "others could not begin"


def before(row: Row, scratch: Path) -> tuple[int, int, str]:
    """As `held`, of the code before the commit that mended it."""
    tree = scratch / f"before_{row.mended}"
    if not tree.exists():
        git = ("git", "-C", str(REPO))
        subprocess.run(
            [*git, "worktree", "add", "--detach", str(tree), f"{row.mended}^"], check=True, capture_output=True
        )
        subprocess.run(
            ["git", "-C", str(tree), "checkout", row.mended, "--", "tests"], check=True, capture_output=True
        )
        (tree / "tests" / "absent.py").write_text(ABSENT, encoding="utf-8")
    return held(tree, row, scratch, "-p", "absent")


def main() -> None:
    """Run the rows, and print them as they come."""
    parser = argparse.ArgumentParser(description="Attacks and faults, before and now.")
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.folder)
        return
    path = arguments.folder / ("attacks_before.json" if arguments.before else "attacks_now.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        for row in (row for row in ROWS if arguments.only in row.name and (row.mended or not arguments.before)):
            results[row.name] = before(row, Path(name)) if arguments.before else held(REPO, row, Path(name))
            sys.stdout.write(f"{row.name}: {said(results[row.name])}\n")
            sys.stdout.flush()
            path.write_text(json.dumps(results, indent=1), encoding="utf-8")
        for tree in Path(name).glob("before_*"):
            subprocess.run(["git", "-C", str(REPO), "worktree", "remove", "--force", str(tree)], check=False)


def table(folder: Path) -> None:
    """Print both runs side by side."""
    found = {
        when: json.loads((folder / f"attacks_{when}.json").read_text(encoding="utf-8"))
        for when in ("before", "now")
    }
    sys.stdout.write("| attack or fault | held before | held now |\n|---|--:|--:|\n")
    for row in ROWS:
        cells = [said(found[when][row.name]) if row.name in found[when] else "" for when in ("before", "now")]
        sys.stdout.write(f"| {row.name} | {cells[0]} | {cells[1]} |\n")


def said(result: Sequence[Any]) -> str:
    """5 of 6."""
    held_, tried, why = result
    return f"{held_} of {tried}{why and f' ({why})'}" if tried else f"not known: {why}"


if __name__ == "__main__":
    main()
