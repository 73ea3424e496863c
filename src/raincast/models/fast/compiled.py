"""Compilation of the C sources of this folder at first use, for this processor.

A library is kept for later processes in `$RAINCAST_CACHE` or the user's cache folder, with the hash of its bytes
in its name. A library that does not match its hash is compiled again; one that another user could have planted is
not loaded. `RAINCAST_KERNELS=0` disables the kernels.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from raincast.system.files import flush
from raincast.system.paths import cache_folder, check_owner

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FLAGS = [
    *("-std=gnu11", "-O3", "-march=native"),
    *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),  # allow vectorisation; NaN keeps its meaning
    *("-fopenmp", "-shared", "-fPIC"),
]


def load(source: str, define: str = "") -> ctypes.CDLL | None:
    """Load the library of a source file with `define` set.

    None, after one warning, if it cannot be compiled or loaded.
    """
    if switched_off():
        return None
    try:
        return _load(source, define)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        reason = getattr(error, "stderr", None) or error
        say_once(f"ConvLSTM runs on plain PyTorch: its C kernels could not be compiled ({reason}).")
        return None


def switched_off() -> bool:
    """Return True if the user has disabled the kernels (`RAINCAST_KERNELS=0`), including those of a GPU."""
    return os.environ.get("RAINCAST_KERNELS", "1") == "0"


@functools.cache
def say_once(message: str) -> None:
    """Log a warning once per process."""
    log.warning(message)


def watched(like: Tensor) -> bool:
    """Return True if operations must stay visible: for tracers, and for tensors without memory of their own."""
    return type(like) is not Tensor or is_in_torch_dispatch_mode()


def _load(source: str, define: str) -> ctypes.CDLL:
    path = compile_library(source, define)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # corrupted: compile it again
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(compile_library(source, define)))


def compile_library(source: str, define: str = "") -> Path:
    """Return the path of the shared library, cached or newly compiled.

    Raises OSError or SubprocessError on failure.
    """
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    compiler = shlex.split(os.environ.get("CC", "")) or ([found] if found else [])
    if not compiler:
        raise OSError("no C compiler found; install gcc, or name one in CC")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    path = FOLDER / source
    made_of = "\n".join([path.read_text(encoding="utf-8"), define, *FLAGS, version, _processor()])
    folder = cache_folder()
    check_owner(folder)
    name = f"{path.stem}-{_hash(made_of.encode())}"
    for library in sorted(folder.glob(f"{name}-*.so")):
        check_owner(library)
        # loading a truncated library (after a power cut, say) would crash the process without a message
        if library.stem == f"{name}-{_hash(library.read_bytes())}":
            return library
        library.unlink(missing_ok=True)
    # in a temporary folder first: other processes may compile the same source at the same time
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place) / "library.so"
        defines = [f"-D{define}"] if define else []
        command = [*compiler, *FLAGS, *defines, str(path), "-o", str(made), "-lm"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        made.chmod(0o755)  # whatever the umask: `check_owner` checks the mode
        flush(made)
        library = folder / f"{name}-{_hash(made.read_bytes())}.so"
        made.replace(library)
    return library


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> str:
    """Return the features that -march=native depends on, so that machines sharing a cache have a library each."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
