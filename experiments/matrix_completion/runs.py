"""Runs of the study: what is compared with what, and the rates that are chosen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pcexp.report.claims import Ratio, Records, Run, censored_ratio, done

ACTIVATIONS = ("linear", "tanh", "relu")
PROTOCOLS = ("published", "corrected")
SADDLES = (0, 1, 2)
ETA, START = "optimiser.learning_rate", "config.study.start"
PUBLISHED_ETA, ONE_SCALE_ETA = 0.01, 0.002
"""The published learning rate; one of summed gradients at which both rules are stable."""
RATES = {"published": PUBLISHED_ETA, "corrected": ONE_SCALE_ETA}


class Name(NamedTuple):
    """Which run of a part of the records: rule, activation, saddle that it starts from, learning rate and seed."""

    learning: str
    activation: str
    start: int
    eta: float
    seed: int


def named(records: Records) -> dict[Name, Run]:
    """Runs that ended with numbers and from where they were to start."""
    return {name(run): run for run in done(records) if run["visited_at"] >= 0}


def asked(records: Records) -> list[Name]:
    """Runs that were asked for."""
    return [name(run) for run in records.asked.iter_rows(named=True)]


def name(run: Mapping[str, Any]) -> Name:
    """The name of a run or of one that was asked for; parts are called after the saddle that they start from."""
    return Name(run["learning"], run["activation"], int(run[START]), run[ETA], run["seed"])


def seeds(records: Records, activation: str) -> list[int]:
    """Seeds that PC was asked to run."""
    return sorted({n.seed for n in asked(records) if n.activation == activation and n.learning == "pc"})


def best_eta(records: Records, learning: str, activation: str) -> float | None:
    """The learning rate with the fewest iterations to the end from the origin, of those at which all seeds get there."""
    found, wanted = named(records), seeds(records, activation)
    means = {}
    for eta in sorted({n.eta for n in asked(records) if n.learning == learning}):
        of_eta = [found.get(Name(learning, activation, 0, eta, seed)) for seed in wanted]
        if of_eta and all(run is not None and run["ended"] for run in of_eta):
            means[eta] = float(np.mean([run["iterations"] for run in of_eta if run is not None]))
    return min(means, key=lambda eta: means[eta]) if means else None


def published_eta(records: Records, learning: str, activation: str) -> float | None:
    """The published learning rate, of both rules."""
    return PUBLISHED_ETA


def one_scale_eta(records: Records, learning: str, activation: str) -> float | None:
    """The one learning rate of both rules in summed gradients."""
    return ONE_SCALE_ETA


def leaving(pc: Run | None, bp: Run | None, saddle: int) -> Ratio | None:
    """Iterations of BP to leave a saddle that it visits, over those of PC from the weights at which BP visits it.

    A bound where one did not leave; None where BP was not there, or a run is missing.
    """
    if pc is None or bp is None or pc.get(f"left_{saddle}") is None or bp.get(f"left_{saddle}") is None:
        return None
    iterations, left = f"iterations_{saddle}", f"left_{saddle}"
    return censored_ratio(bp[iterations], bp[left], pc[iterations], pc[left])
