"""`python -m pcexp +experiment=NAME`: run what is missing of an experiment, then report it."""

import os
import sys

from pcexp.command_line import CONF, speak  # first: it sets what JAX reads when it is imported

# isort: split
import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from pcexp.config.composition import refusal


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(_: DictConfig) -> None:
    raise AssertionError("hydra.mode is MULTIRUN: the sweeper runs the cells")


def main() -> None:
    """Entry point of the console script."""
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
