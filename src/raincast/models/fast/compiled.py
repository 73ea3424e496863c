"""The C sources of this folder, compiled at first use for this processor.

A library is kept for the next process in `$RAINCAST_CACHE` or the user's cache folder, with the hash of its bytes
in its name. One that does not have its hash is made anew; one that others could have planted is not loaded.
`RAINCAST_KERNELS=0` does without.
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

from raincast.system.cache import cache_folder, check_owner
from raincast.system.files import flush

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FLAGS = [
    *("-std=gnu11", "-O3", "-march=native"),
    *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),  # vectors; NaN keeps its meaning
    *("-fopenmp", "-shared", "-fPIC"),
]


def load(source: str, define: str = "") -> ctypes.CDLL | None:
    """The library of a source (its file's name), `define` set; None where it cannot be had, which is said once."""
    if switched_off():
        return None
    try:
        return _load(source, define)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        reason = getattr(error, "stderr", None) or error
        say_once(f"ConvLSTM runs on plain PyTorch: its C kernels could not be compiled ({reason}).")
        return None


def switched_off() -> bool:
    """Whether the user does without kernels, those of a GPU included."""
    return os.environ.get("RAINCAST_KERNELS", "1") == "0"


@functools.cache
def say_once(message: str) -> None:
    """A warning, once in a process."""
    log.warning(message)


def watched(like: Tensor) -> bool:
    """Whether somebody has to see the operations: tracers, or tensors without memory of their own."""
    return type(like) is not Tensor or is_in_torch_dispatch_mode()


def _load(source: str, define: str) -> ctypes.CDLL:
    path = compile_library(source, define)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # no library, whatever became of it
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(compile_library(source, define)))


def compile_library(source: str, define: str = "") -> Path:
    """The shared library, from the cache or made anew; OSError or SubprocessError where that fails."""
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
        # to load a torn one, as after a power cut, would end the process without a message
        if library.stem == f"{name}-{_hash(library.read_bytes())}":
            return library
        library.unlink(missing_ok=True)
    # in a folder of its own first: other processes compile the same at the same time
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place) / "library.so"
        defines = [f"-D{define}"] if define else []
        command = [*compiler, *FLAGS, *defines, str(path), "-o", str(made), "-lm"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        made.chmod(0o755)  # whatever the umask: `check_owner` looks at it
        flush(made)
        library = folder / f"{name}-{_hash(made.read_bytes())}.so"
        made.replace(library)
    return library


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> str:
    """What -march=native depends on: a cache shared by unlike machines holds one library for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
