"""What is claimed of landscapes and escapes. Thresholds were set before the runs."""

from collections.abc import Callable, Sequence

import numpy as np

from pcexp.report.claims import (
    Case,
    Claim,
    Ratio,
    Records,
    Rule,
    Run,
    Verdict,
    censored_ratio,
    done,
    insufficient,
    median_ratio,
    paired,
    pairs,
    ratios_shown,
    verdict,
)

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


def training(records: Records, net: str, protocol: str, learning: str) -> Records:
    """Training runs of one net, protocol and learning rule."""
    return records.select(block=net, protocol=protocol, learning=learning)


def pc_and_bp(records: Records, net: str, protocol: str) -> tuple[list[tuple[Run, Run]], int]:
    """(PC, BP) runs of the same seed, and how many pairs that were asked for are missing."""
    pc, bp = (training(records, net, protocol, learning) for learning in ("pc", "bp"))
    both = pairs(done(pc), done(bp))
    return both, len(pc.asked) - len(both)


def escape_ratio(pc: Run, bp: Run) -> Ratio:
    """Iterations of BP to escape over those of PC; a bound where one did not escape."""
    return censored_ratio(bp["escape_iteration"], bp["escaped"], pc["escape_iteration"], pc["escaped"])


def _ratios(records: Records, nets: Sequence[str], protocol: str) -> tuple[dict[str, list[Ratio]], int]:
    """Ratios of each net by its name, and how many pairs are missing."""
    found = {NAMES[net].replace("$", "").replace("\\", "") + ":": pc_and_bp(records, net, protocol) for net in nets}
    ratios = {name: [escape_ratio(pc, bp) for pc, bp in both] for name, (both, _) in found.items()}
    return ratios, sum(missing for _, missing in found.values())


def faster(net: str, protocol: str) -> Rule:
    """PC escapes in fewer iterations than BP, for every seed."""

    def rule(records: Records) -> Verdict:
        ratios, missing = _ratios(records, [net], protocol)
        return paired(records, "iterations of BP / PC > 1", ratios, missing=missing)

    return rule


def _chains(expected: str, holds: Callable[[list[float]], bool]) -> Rule:
    """A statement on the median ratios of the chains, from the shallowest."""

    def rule(records: Records) -> Verdict:
        ratios, missing = _ratios(records, CHAINS, "corrected")
        medians = [median_ratio(found) for found in ratios.values()]
        if missing or any(median.bound != "exact" for median in medians):
            observed = ", ".join(f"{name} {median}" for name, median in zip(ratios, medians, strict=True))
            return insufficient(records, expected, f"{missing} pairs missing; {observed}")
        return ratios_shown(records, expected, ratios, reproduced=holds([median.value for median in medians]))

    return rule


def _grows(medians: list[float]) -> bool:
    return bool(np.all(np.diff(medians) > 0))


def _about(medians: list[float]) -> bool:
    return all(1 / ABOUT <= m / w <= ABOUT for m, w in zip(medians, EXPECTED.values(), strict=True))


def _landscapes(column: str, expected: str, holds: Callable[[float], bool]) -> Rule:
    """One case a net: seeds of a landscape differ in the generic plane alone."""

    def rule(records: Records) -> Verdict:
        parts = {net: records.select(block=f"landscape_{net}") for net in ("chain_2", "chain_3", "wide")}
        cases = {net: [Case(holds(run[column]), run[column]) for run in done(part)[:1]] for net, part in parts.items()}
        asked = sum(len(part.asked) > 0 for part in parts.values())
        return verdict(records, expected, cases, missing=asked - sum(map(len, cases.values())))

    return rule


def _gradients(net: str, protocol: str) -> Rule:
    expected = "smallest gradient norm until the escape, PC / BP > 1"

    def case(pc: Run, bp: Run) -> Case | None:
        if not pc["escaped"]:  # then the plateau was not seen to its end
            return None
        ratio = pc["plateau_gradient_norm"] / max(bp["plateau_gradient_norm"], 1e-38)
        return Case(ratio > 1, ratio)

    def rule(records: Records) -> Verdict:
        both, missing = pc_and_bp(records, net, protocol)
        return verdict(records, expected, ((net, case(pc, bp)) for pc, bp in both), missing=missing)

    return rule


CLAIMS = (
    Claim(
        "4.2",
        "the projected loss is flat for H > 1",
        _landscapes("loss_range", f"range over the grid < {FLAT:g} of the value at the origin", lambda r: r < FLAT),
    ),
    Claim(
        "4.2",
        "the equilibrated energy in the same plane is not",
        _landscapes(
            "equilibrated_range",
            f"range over the grid > {CURVED:g} of the value at the origin",
            lambda r: r > CURVED,
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
