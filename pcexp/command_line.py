"""What all commands share: settings that JAX reads when it is imported, where conf/ is, and how refusals are said.

Imported before JAX is.
"""

import difflib
import logging
import os
import sys
from pathlib import Path

# A synchronous CPU call runs on the thread that makes it, so that worker threads fill the cores.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
# For the same cores: LAPACK's own threads wait for each other by spinning, and on a busy machine a QR of 256 x 256 took 1 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pcexp.config.composition import by_choice, by_scale

_here = Path(__file__).parent
CONF = _here / "conf" if (_here / "conf").is_dir() else _here.parent / "conf"


def register() -> None:
    """Make the resolvers known to OmegaConf."""
    OmegaConf.register_new_resolver("by_scale", by_scale, replace=True)
    OmegaConf.register_new_resolver("by_choice", by_choice, replace=True)


def speak() -> None:
    """Let what the package logs be seen."""
    logging.getLogger("pcexp").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("pcexp").setLevel(logging.INFO)


def refusal(error: HydraException) -> str:
    """What is wrong with an override: of a key that does not exist, the close one and the valid ones too."""
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        valid = [str(key) for key in cause.parent_node if key not in ("_target_", "hydra", "choices", "variant")]
        close = difflib.get_close_matches(str(cause.key), valid, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        return f"{cause.full_key} is no key{meant}; valid there are {', '.join(valid)}"
    return str(error)
