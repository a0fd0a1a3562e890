"""What all commands share: what JAX and matplotlib read when they are imported, where conf/ is, and streams that last.

Imported before JAX is. Nothing of a user's shell changes what a command computes or draws, or ends it.
"""

import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

# A synchronous CPU call runs on the thread that makes it, so that worker threads fill the cores.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
# For the same cores: LAPACK's own threads wait for each other by spinning, and on a busy machine a QR of 256 x 256 took 1 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Figures are files: a notebook's shell names a backend that need not be installed here, and a matplotlibrc may be anything.
os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
# Where warnings are errors, packages that we import end the command with theirs.
if os.environ.pop("PYTHONWARNINGS", "") or sys.warnoptions:
    warnings.filters[:] = [one for one in warnings.filters if one[0] != "error"]  # type: ignore[index]
# The next file that is opened would take the number of a standard stream that the shell has closed, and its output too.
while (_number := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
os.close(_number)

KEPT = (
    *(
        "JAX_PLATFORM",
        "JAX_CUDA_VISIBLE_DEVICES",
        "JAX_ROCM_VISIBLE_DEVICES",
        "JAX_NUM_CPU_DEVICES",
        "JAX_CPU_ENABLE_ASYNC",
    ),
    *("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "JAX_ENABLE_COMPILATION_CACHE", "JAX_NUMPY_RANK_PROMOTION"),
    *("JAX_LOG", "JAX_DUMP", "JAX_TRACEBACK", "JAX_COORDINATOR", "JAX_PROCESS", "JAX_CPU_COLLECTIVES"),
)
"""How names of variables begin that tell JAX where to compute and what to say of it: no number depends on them."""
OTHERS = ("JAX_", "EQX_", "NVIDIA_TF32_OVERRIDE")
LEFT_OUT = sorted(name for name in os.environ if name.startswith(OTHERS) and not name.startswith(KEPT))
"""Variables of the user's shell that would change numbers, or stop a run, without a word in its record."""
for name in LEFT_OUT:
    del os.environ[name]

_here = Path(__file__).parent
CONF = _here / "conf" if (_here / "conf").is_dir() else _here.parent / "conf"


class _Lasting(io.FileIO):
    """A standard stream that outlasts a full disk and a terminal that has gone: what it cannot take is lost, and the run goes on."""

    lost: OSError | None = None

    def write(self, content: object) -> int:
        try:
            return super().write(content)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError as error:
            self.lost = error
            return len(content)  # type: ignore[arg-type]


def lasting(stream: TextIO | None, number: int) -> TextIO:
    """A standard stream that ends no run, and can write any text whatever its encoding."""
    encoding, by_line = (stream.encoding, stream.isatty()) if stream else ("utf-8", False)
    raw = io.BufferedWriter(_Lasting(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=by_line or number == 2)


def lost() -> OSError | None:
    """Why some of standard output was lost, where it was."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)


def speak() -> None:
    """Let what the package logs be seen."""
    logging.getLogger("pcexp").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("pcexp").setLevel(logging.INFO)
    if LEFT_OUT:
        ignored = ", ".join(LEFT_OUT)
        logging.getLogger("pcexp").warning(
            f"left out of the environment: {ignored}; the configuration alone says what is run"
        )
