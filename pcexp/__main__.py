"""One command: `python -m pcexp VERB ...`, and without a verb `python -m pcexp +experiment=NAME` runs what is missing of a study.

report, records, campaign, data and status are the verbs; each says more after --help.
"""

import os
import pkgutil
import sys
import traceback
from pathlib import Path

from pcexp.command_line import CONF, lasting, lost, speak  # first: it sets what JAX reads when it is imported

# isort: split
import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from yaml import YAMLError

from pcexp.config.grid import Refused
from pcexp.config.plain import suggestion
from pcexp.config.refusals import refusal, unused
from pcexp.files import place

# Names, because each verb imports what it needs (tables, figures, JAX), and the others must not wait for it.
VERBS = {
    "report": "pcexp.report.rendering:main",
    "records": "pcexp.commands:records",
    "campaign": "pcexp.campaign:main",
    "data": "pcexp.data.__main__:main",
    "status": "pcexp.records.status:main",
}
FOLDER, VALUED = (
    ("--config-dir", "-cd"),
    ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
)
"""Options whose value is the next word, if not behind =; of the first it is a folder."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(_: DictConfig) -> None:
    raise Refused(unused("hydra.mode and hydra/sweeper"))


def _verb(word: str) -> str | None:
    """Where the verb is that `word` names; None of a word that Hydra reads. Any other word ends the command."""
    if word in VERBS or not word or "=" in word or not word[0].isalpha():
        return VERBS.get(word)
    meant, valid = suggestion(word, VERBS), ", ".join(VERBS)
    sys.exit(f"pcexp: there is no verb {word}{meant}: valid are {valid}; +experiment=NAME runs without one")


def _words(words: list[str]) -> list[str]:
    """A command's words as Hydra takes them: options first, because one among the others would hide those behind it."""
    options, rest, before = list[str](), list[str](), ""
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--experimental-rerun":  # it would read a pickle
            raise Refused(f"{word}: give the command itself again; it runs what is missing")
        if option in FOLDER and equals:
            word = f"{option}={place(value)}"
        if word.startswith("-") or before in (*FOLDER, *VALUED) or (before in ("--info", "-i") and not equals):
            options.append(str(place(word)) if before in FOLDER else word)
        else:  # lane keys are the user's to name: for Hydra, which knows none of them, each is an addition
            rest.append(f"++{word}" if word.startswith("lanes.") else word)
        before = word
    return [*options, *rest]


def _of_hydra(error: Exception) -> bool:
    """Whether it is Hydra that refuses words: options that do not go together."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("hydra.")


def _commanded(words: list[str]) -> int | None:
    """The status of a command with these words."""
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit("pcexp: the current folder is not there any more: change to another one, and give the command again")
    if verb := _verb(next(iter(words), "")):
        return pkgutil.resolve_name(verb)(words[1:])
    sys.argv[1:] = _words(words)
    speak()
    _run()
    return None


def main() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # then Hydra's errors come here, to be said in our words
    if sys.stdout is sys.__stdout__:  # not where somebody captures it
        sys.stdout, sys.stderr = lasting(sys.stdout, 1), lasting(sys.stderr, 2)
    try:
        code = _commanded(sys.argv[1:])
        sys.stdout.flush()
    except (HydraException, YAMLError, UnicodeError) as error:
        folders = [Path(word.rpartition("=")[2]) for word in sys.argv[1:] if "=" not in word or word[0] == "-"]
        sys.exit(f"pcexp: {refusal(error, [CONF, *folders])}")
    except ValueError as error:
        if not _of_hydra(error):
            raise
        sys.exit(f"pcexp: {error}")
    except KeyboardInterrupt:  # before the first cell or after the last: in between a stop is asked for
        print("pcexp: interrupted; nothing that was computed is lost, the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as in `python -m pcexp ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"pcexp: {error}")
    if lost():
        sys.exit(f"pcexp: not all that was said could be written: {lost()}; what was computed is kept")
    sys.exit(code)


def module(verb: str) -> None:
    """`python -m pcexp.VERB`: the same as `python -m pcexp VERB`."""
    sys.argv.insert(1, verb)
    main()


if __name__ == "__main__":
    main()
