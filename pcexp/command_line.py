"""What all commands share: settings that JAX reads when it is imported, where conf/ is, and a log that is seen.

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

_here = Path(__file__).parent
CONF = _here / "conf" if (_here / "conf").is_dir() else _here.parent / "conf"


def speak() -> None:
    """Let what the package logs be seen."""
    logging.getLogger("pcexp").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("pcexp").setLevel(logging.INFO)
