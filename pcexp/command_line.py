"""What all commands share: settings that JAX reads when it is imported and none beside them, where conf/ is, a log that is seen.

Imported before JAX is.
"""

import logging
import os
import sys
from pathlib import Path

# A synchronous CPU call runs on the thread that makes it, so that worker threads fill the cores.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
# For the same cores: LAPACK's own threads wait for each other by spinning, and on a busy machine a QR of 256 x 256 took 1 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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


def speak() -> None:
    """Let what the package logs be seen."""
    logging.getLogger("pcexp").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("pcexp").setLevel(logging.INFO)
    if LEFT_OUT:
        ignored = ", ".join(LEFT_OUT)
        logging.getLogger("pcexp").warning(
            f"left out of the environment: {ignored}; the configuration alone says what is run"
        )
