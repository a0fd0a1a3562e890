"""One command: `python -m pcexp VERB ...`, and without a verb `python -m pcexp +experiment=NAME` runs what is missing of a study.

report, records, campaign, data and status are the verbs; each says more after --help.
"""

import os
import pkgutil
import sys

from pcexp.command_line import CONF, speak  # first: it sets what JAX reads when it is imported

# isort: split
import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from pcexp.config.composition import refusal
from pcexp.config.plain import suggestion

# Names, because each verb imports what it needs (tables, figures, JAX), and the others must not wait for it.
VERBS = {
    "report": "pcexp.report.rendering:main",
    "records": "pcexp.commands:records",
    "campaign": "pcexp.campaign:main",
    "data": "pcexp.data.__main__:main",
    "status": "pcexp.records.status:main",
}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(_: DictConfig) -> None:
    raise AssertionError("hydra.mode is MULTIRUN: the sweeper runs the cells")


def _verb(word: str) -> str | None:
    """Where the verb is that `word` names; None of a word that Hydra reads. Any other word ends the command."""
    if word in VERBS or not word or "=" in word or not word[0].isalpha():
        return VERBS.get(word)
    meant, valid = suggestion(word, VERBS), ", ".join(VERBS)
    sys.exit(f"pcexp: there is no verb {word}{meant}: valid are {valid}; +experiment=NAME runs without one")


def main() -> None:
    verb, code = _verb(next(iter(sys.argv[1:]), "")), None
    os.environ["HYDRA_FULL_ERROR"] = "1"  # then Hydra's errors come here, to be said in our words
    try:
        if verb:
            code = pkgutil.resolve_name(verb)(sys.argv[2:])
        else:
            # Lane keys are the user's to name: for Hydra, which knows none of them, each is an addition.
            sys.argv[1:] = [f"++{word}" if word.startswith("lanes.") else word for word in sys.argv[1:]]
            speak()
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
    sys.exit(code)


if __name__ == "__main__":
    main()
