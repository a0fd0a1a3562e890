"""`python -m pcexp +experiment=NAME`: run what is missing of an experiment, then report it."""

import difflib
import logging
import os
import sys
from pathlib import Path

# Set before jax is imported: a synchronous CPU call runs on the thread that makes it, so that worker threads fill the cores.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
# For the same cores: LAPACK's own threads wait for each other by spinning, and on a busy machine a QR of 256 x 256 took 1 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pcexp.configuration import by_choice, by_scale, resolved, split_lanes

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


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(config: DictConfig) -> None:
    # Reached without a sweep only; sweeps go through the launcher.
    from pcexp.sweep import run_all

    about = HydraConfig.get()
    _, lanes = split_lanes(config, about.overrides.task)
    sys.exit(run_all([resolved(config, about, lanes)]))


def refusal(error: HydraException) -> str:
    """What is wrong with an override: of a key that does not exist, the close one and the valid ones too."""
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        valid = [str(key) for key in cause.parent_node if key not in ("_target_", "hydra", "choices", "variant")]
        close = difflib.get_close_matches(str(cause.key), valid, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        return f"{cause.full_key} is no key{meant}; valid there are {', '.join(valid)}"
    return str(error)


def main() -> None:
    """Entry point of the console script."""
    register()
    speak()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # then Hydra's errors come here, to be said in our words
    try:
        _run()
        sys.stdout.flush()
    except HydraException as error:
        sys.exit(f"pcexp: {refusal(error)}")
    except KeyboardInterrupt:  # before the first cell or after the last: in between a stop is asked for
        print("pcexp: interrupted; nothing that was computed is lost, the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as in `python -m pcexp ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
