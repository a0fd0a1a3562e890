"""What is claimed of landscapes and escapes. Thresholds were set before the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pcexp.report.claims import (
    Case,
    Claim,
    Ratio,
    Run,
    Status,
    Verdict,
    censored_ratio,
    insufficient,
    median_ratio,
    spread,
    verdict,
)

if TYPE_CHECKING:  # tables are imported when a run has ended, not before
    from pcexp.records.tables import Records

ESCAPE_FRACTION = 0.9
FLAT = 0.01
CURVED = 0.1
ABOUT = 2.0
CHAINS = ("chain_1", "chain_2", "chain_3")
NAMES = {
    "chain_1": "chain H = 1",
    "chain_2": "chain H = 2",
    "chain_3": "chain H = 3",
    "wide": r"wide, $\sigma$ = 0.1",
    "wide_code": r"wide, $\sigma$ = 0.005",
}
EXPECTED = {"chain_1": 1.3, "chain_2": 4.0, "chain_3": 20.0}
"""About what BP's iterations over PC's are at one scale."""

Rule = Callable[["Records"], Verdict]


def training(records: Records, net: str, protocol: str, learning: str) -> Records:
    """Training runs of one net, protocol and learning rule."""
    return records.select(block=net, protocol=protocol, learning=learning)


def done(records: Records) -> list[Run]:
    """Runs that ended with numbers, by seed."""
    runs = records.runs.iter_rows(named=True) if len(records.runs) else ()
    return sorted((run for run in runs if run["outcome"] == "done"), key=lambda run: run["seed"])


def pairs(records: Records, net: str, protocol: str) -> tuple[list[tuple[Run, Run]], int]:
    """(PC, BP) runs of the same seed, and how many pairs that were asked for are missing."""
    pc = {run["seed"]: run for run in done(training(records, net, protocol, "pc"))}
    bp = {run["seed"]: run for run in done(training(records, net, protocol, "bp"))}
    both = [(pc[seed], bp[seed]) for seed in sorted(pc.keys() & bp.keys())]
    return both, len(training(records, net, protocol, "pc").asked) - len(both)


def escape_ratio(pc: Run, bp: Run) -> Ratio:
    """Iterations of BP to escape over those of PC; a bound where one did not escape."""
    return censored_ratio(bp["escape_iteration"], bp["escaped"], pc["escape_iteration"], pc["escaped"])


def _ratios(records: Records, nets: Sequence[str], protocol: str) -> tuple[dict[str, list[Ratio]], int]:
    found, missing = {}, 0
    for net in nets:
        both, lost = pairs(records, net, protocol)
        found[net], missing = [escape_ratio(pc, bp) for pc, bp in both], missing + lost
    return found, missing


def _said(records: Records, expected: str, ratios: dict[str, list[Ratio]], status: Status) -> Verdict:
    label = {net: NAMES[net].replace("$", "").replace("\\", "") for net in ratios}
    observed = ", ".join(f"{label[net]}: {median_ratio(r)}" for net, r in ratios.items())
    interval = "; ".join(f"{label[net]}: {spread(r)}" for net, r in ratios.items())
    return Verdict(status, observed, interval, expected, sum(map(len, ratios.values())), records.scale)


def faster(net: str, protocol: str) -> Rule:
    """PC escapes in fewer iterations than BP, for every seed."""
    expected = "iterations of BP / PC > 1"

    def rule(records: Records) -> Verdict:
        ratios, missing = _ratios(records, [net], protocol)
        found = ratios[net]
        refuted = any(r.bound in ("exact", "at_most") and r.value <= 1 for r in found)
        undecided = sum(r.bound == "unknown" or (r.bound == "at_least" and r.value <= 1) for r in found)
        undecided += sum(r.bound == "at_most" and r.value > 1 for r in found)
        if not refuted and (undecided or missing or not found):
            return insufficient(
                records, expected, f"{undecided} undecided and {missing} missing of {len(found) + missing} pairs"
            )
        return _said(records, expected, ratios, "not_reproduced" if refuted else "reproduced")

    return rule


def _chains(expected: str, holds: Callable[[list[float]], bool]) -> Rule:
    """A statement on the median ratios of the chains, from the shallowest."""

    def rule(records: Records) -> Verdict:
        ratios, missing = _ratios(records, CHAINS, "corrected")
        medians = [median_ratio(found) for found in ratios.values()]
        if missing or any(median.bound != "exact" for median in medians):
            observed = ", ".join(f"{NAMES[net]}: {median}" for net, median in zip(CHAINS, medians, strict=True))
            return insufficient(records, expected, f"{missing} pairs missing; {observed}")
        status: Status = "reproduced" if holds([median.value for median in medians]) else "not_reproduced"
        return _said(records, expected, ratios, status)

    return rule


def _grows(medians: list[float]) -> bool:
    return bool(np.all(np.diff(medians) > 0))


def _about(medians: list[float]) -> bool:
    return all(1 / ABOUT <= m / w <= ABOUT for m, w in zip(medians, EXPECTED.values(), strict=True))


def _landscapes(expected: str, case: Callable[[Run], Case]) -> Rule:
    """One case a net: seeds of a landscape differ in the generic plane alone."""

    def rule(records: Records) -> Verdict:
        parts = {net: records.select(block=f"landscape_{net}") for net in ("chain_2", "chain_3", "wide")}
        cases = {net: [case(run) for run in done(part)[:1]] for net, part in parts.items()}
        n = sum(map(len, cases.values()))
        asked = sum(len(part.asked) > 0 for part in parts.values())
        return verdict(records, expected, cases, n=n, missing=asked - n)

    return rule


def _gradients(net: str, protocol: str) -> Rule:
    expected = "smallest gradient norm until the escape, PC / BP > 1"

    def rule(records: Records) -> Verdict:
        both, missing = pairs(records, net, protocol)
        seen = [(pc, bp) for pc, bp in both if pc["escaped"]]  # else the plateau was not seen to its end
        values = [pc["plateau_gradient_norm"] / max(bp["plateau_gradient_norm"], 1e-38) for pc, bp in seen]
        cases = {net: [Case(value > 1, value) for value in values]}
        return verdict(records, expected, cases, n=len(seen), missing=missing + len(both) - len(seen))

    return rule


CLAIMS = (
    Claim(
        "4.2",
        "the projected loss is flat for H > 1",
        _landscapes(
            f"range over the grid < {FLAT:g} of the value at the origin",
            lambda run: Case(run["loss_range"] < FLAT, run["loss_range"]),
        ),
    ),
    Claim(
        "4.2",
        "the equilibrated energy in the same plane is not",
        _landscapes(
            f"range over the grid > {CURVED:g} of the value at the origin",
            lambda run: Case(run["equilibrated_range"] > CURVED, run["equilibrated_range"]),
        ),
    ),
    Claim(
        "escape",
        "4.2: chains, one scale: the ratio of escape iterations BP / PC grows with H",
        _chains("medians of the seeds increase over H = 1, 2, 3", _grows),
    ),
    Claim(
        "escape",
        "4.2: and is about 1.3, 4 and 20",
        _chains(f"medians within a factor {ABOUT:g} of 1.3, 4 and 20", _about),
    ),
    Claim(
        "escape", "4.2: chain H = 2, one scale: PC escapes in fewer iterations than BP", faster("chain_2", "corrected")
    ),
    Claim("escape", "4.2: chain H = 3, one scale: the same", faster("chain_3", "corrected")),
    *(
        Claim("escape", f"4.2: wide, sigma = {sigma}, {protocol}: the same", faster(net, protocol))
        for net, sigma in (("wide", "0.1"), ("wide_code", "0.005"))
        for protocol in ("corrected", "published")
    ),
    *(
        Claim(
            "B.1",
            f"{name}, {protocol}: PC's gradient does not vanish on the plateau as BP's does",
            _gradients(net, protocol),
        )
        for net, name, protocol in (
            ("chain_2", "chain H = 2", "corrected"),
            ("chain_3", "chain H = 3", "corrected"),
            ("wide", "wide, sigma = 0.1", "corrected"),
            ("wide", "wide, sigma = 0.1", "published"),
            ("wide_code", "wide, sigma = 0.005", "corrected"),
            ("wide_code", "wide, sigma = 0.005", "published"),
        )
    ),
)
