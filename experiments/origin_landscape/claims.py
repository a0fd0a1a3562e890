"""What is claimed of landscapes and escapes. Thresholds were set before the runs."""

from collections.abc import Callable, Sequence

from pcexp.report import claims
from pcexp.report.claims import Case, Claim, Ratio, Records, Run, Verdict, done, rule

ESCAPE_FRACTION = 0.9
FLAT = 0.01
CURVED = 0.1
ABOUT = 2.0
CHAINS = ("chain_1", "chain_2", "chain_3")
ARMS = (
    *((net, "corrected") for net in CHAINS),
    *((net, protocol) for net in ("wide", "wide_code") for protocol in ("corrected", "published")),
)
"""Nets that are trained, with their protocols."""
NAMES = {
    "chain_1": "chain H = 1",
    "chain_2": "chain H = 2",
    "chain_3": "chain H = 3",
    "wide": r"wide, $\sigma$ = 0.1",
    "wide_code": r"wide, $\sigma$ = 0.005",
}
EXPECTED = (1.3, 4.0, 20.0)
"""About what BP's iterations over PC's are at one scale in these chains."""


def training(records: Records, net: str, protocol: str) -> Records:
    return records.select(block=net, protocol=protocol)


def escape_ratio(pc: Run, bp: Run) -> Ratio:
    """Iterations of BP to escape over those of PC; a bound where one did not escape."""
    return claims.passage_ratio(pc, bp, "escape_iteration", "escaped")


def _plain(net: str) -> str:
    """The name of a net without mathematics."""
    return NAMES[net].replace("$", "").replace("\\", "")


def _ratios(records: Records, nets: Sequence[str], protocol: str) -> tuple[dict[str, list[Ratio]], int]:
    parts = {f"{_plain(net)}:": training(records, net, protocol) for net in nets}
    return claims.ratios_of(parts, escape_ratio)


@rule
def faster(records: Records, net: str, protocol: str) -> Verdict:
    ratios, missing = _ratios(records, [net], protocol)
    return claims.paired(records, "iterations of BP / PC > 1", ratios, missing=missing)


@rule
def _chains(records: Records, expected: str, holds: Callable[[list[float]], bool]) -> Verdict:
    """A statement on the median ratios of the chains, from the shallowest."""
    ratios, missing = _ratios(records, CHAINS, "corrected")
    medians = [claims.median_ratio(found) for found in ratios.values()]
    if missing or any(median.bound != "exact" for median in medians):
        observed = ", ".join(f"{name} {median}" for name, median in zip(ratios, medians, strict=True))
        return claims.insufficient(records, expected, f"{missing} pairs missing; {observed}")
    return claims.ratios_shown(records, expected, ratios, reproduced=holds([median.value for median in medians]))


@rule
def _landscapes(records: Records, column: str, expected: str, holds: Callable[[float], bool]) -> Verdict:
    """One case a net: seeds of a landscape differ in the generic plane alone."""
    parts = {net: records.select(block=f"landscape_{net}") for net in ("chain_2", "chain_3", "wide")}
    seen = [(net, run[column]) for net, part in parts.items() for run in done(part)[:1]]
    lost = sum(len(part.asked) > 0 for part in parts.values()) - len(seen)
    return claims.verdict(records, expected, ((net, Case(holds(value), value)) for net, value in seen), missing=lost)


@rule
def _gradients(records: Records, net: str, protocol: str) -> Verdict:
    both, lost = claims.pc_and_bp(training(records, net, protocol))
    norms = [(pc["escaped"], *(run["plateau_gradient_norm"] for run in (pc, bp))) for pc, bp in both]
    ratios = [pc / max(bp, 1e-38) if escaped else None for escaped, pc, bp in norms]  # else its end was not seen
    cases = [(net, None if ratio is None else Case(ratio > 1, ratio)) for ratio in ratios]
    return claims.verdict(records, "smallest gradient norm until the escape, PC / BP > 1", cases, missing=lost)


START, FEWER = "the value at the origin", "in fewer iterations than BP"
VANISHES = "PC's gradient does not vanish on the plateau as BP's does"

CLAIMS = (
    Claim(
        "4.2",
        "the projected loss is flat for H > 1",
        _landscapes("loss_range", f"range over the grid < {FLAT:g} of {START}", lambda r: r < FLAT),
    ),
    Claim(
        "4.2",
        "the equilibrated energy in the same plane is not",
        _landscapes("equilibrated_range", f"range over the grid > {CURVED:g} of {START}", lambda r: r > CURVED),
    ),
    Claim(
        "escape",
        "4.2: chains, one scale: the ratio of escape iterations BP / PC grows with H",
        _chains("medians of the seeds increase over H = 1, 2, 3", lambda medians: medians == sorted(set(medians))),
    ),
    Claim(
        "escape",
        "4.2: and is about 1.3, 4 and 20",
        _chains(
            f"medians within a factor {ABOUT:g} of 1.3, 4 and 20",
            lambda medians: all(1 / ABOUT <= m / w <= ABOUT for m, w in zip(medians, EXPECTED, strict=True)),
        ),
    ),
    Claim("escape", f"4.2: chain H = 2, one scale: PC escapes {FEWER}", faster("chain_2", "corrected")),
    Claim("escape", "4.2: chain H = 3, one scale: the same", faster("chain_3", "corrected")),
    *(
        Claim("escape", f"4.2: {_plain(net)}, {protocol}: the same", faster(net, protocol))
        for net, protocol in ARMS
        if net.startswith("wide")
    ),
    *(
        Claim("B.1", f"{_plain(net)}, {protocol}: {VANISHES}", _gradients(net, protocol))
        for net, protocol in ARMS
        if net != "chain_1"
    ),
)
