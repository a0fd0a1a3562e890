"""Claims: statements of the sources as rules over records, and verdicts that say what was seen, with n and scale.

A rule is total: it answers on any records. Runs that were asked for and are missing, failed or censored are counted, never
left out silently, and a verdict at less than thesis scale never closes a thesis-scale claim (its scale is printed with it).
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:  # polars takes a third of a second to import, and studies are imported where nothing is judged yet
    from pcexp.records.tables import Records
else:
    Records = Any

Run = Mapping[str, Any]
"""One row of the table of runs."""
Status = Literal["reproduced", "not_reproduced", "insufficient"]


@dataclass(frozen=True)
class Verdict:
    """What records say of a claim. `n` counts the runs that the verdict rests on; `interval` shows all of them."""

    status: Status
    observed: str
    interval: str
    expected: str
    n: int
    scale: str


Rule = Callable[[Records], Verdict]
Judged = ParamSpec("Judged")
T = TypeVar("T")


def rule(judge: Callable[Concatenate[Records, Judged], Verdict]) -> Callable[Judged, Rule]:
    """Rules by what they judge: `judge` without its records, which come when the claim is judged."""

    @functools.wraps(judge)
    def of(*arguments: Judged.args, **options: Judged.kwargs) -> Rule:
        return lambda records: judge(records, *arguments, **options)

    return of


@dataclass(frozen=True)
class Claim:
    """A statement with the figure that it belongs to; `rule` judges it on the records of one data set.

    A statement about numbers of one data set names it in `data`: it is judged on no other.
    """

    figure: str
    statement: str
    rule: Rule
    data: str | None = None


@dataclass(frozen=True)
class Ratio:
    """A ratio of two first-passage times, one of which may be censored: then it is a bound, written as one."""

    value: float
    bound: Literal["exact", "at_least", "at_most", "unknown"]

    def __str__(self) -> str:
        sign = {"exact": "", "at_least": "≥ ", "at_most": "≤ ", "unknown": "? "}[self.bound]
        return "unknown" if self.bound == "unknown" else f"{sign}{self.value:.3g}"


def censored_ratio(numerator: float, numerator_seen: bool, denominator: float, denominator_seen: bool) -> Ratio:
    """Ratio of two times where a time that was not seen is only known to be longer than what was run."""
    if not numerator_seen and not denominator_seen:
        return Ratio(float("nan"), "unknown")
    value = numerator / max(denominator, 1)
    if not numerator_seen:
        return Ratio(value, "at_least")
    return Ratio(value, "exact" if denominator_seen else "at_most")


def passage_ratio(pc: Run, bp: Run, time: str, seen: str) -> Ratio:
    """Iterations of BP to an event over those of PC, by the columns of its time and of whether it was seen."""
    return censored_ratio(bp[time], bp[seen], pc[time], pc[seen])


def median_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """Median over seeds. Bounds are ordered as the values they bound; the middle one keeps its sign."""
    # Each ratio is an interval; the median of the lower ends and that of the upper ends bound the median.
    low = sorted(0.0 if r.bound in ("at_most", "unknown") else r.value for r in ratios)
    high = sorted(np.inf if r.bound in ("at_least", "unknown") else r.value for r in ratios)
    if not ratios:
        return Ratio(float("nan"), "unknown")
    lower, upper = low[len(low) // 2], high[len(high) // 2]
    if lower == upper:
        return Ratio(lower, "exact")
    if lower > 0:
        return Ratio(lower, "at_least")
    return Ratio(upper, "at_most") if np.isfinite(upper) else Ratio(float("nan"), "unknown")


def spread(values: Sequence[float | Ratio]) -> str:
    """All values, sorted (bounds by what they bound): with a handful of seeds that says more than an interval."""
    ratios = [v if isinstance(v, Ratio) else Ratio(v, "exact") for v in values]
    known = [str(r) for r in sorted((r for r in ratios if np.isfinite(r.value)), key=lambda r: r.value)]
    return ", ".join(known) if len(known) <= 3 else f"{known[0]} to {known[-1]}"


def ended(records: Records) -> list[Run]:
    """Runs that ended, with numbers or diverged; not those that failed."""
    return [run for run in records.runs.iter_rows(named=True) if run["outcome"] in ("done", "diverged")]


def done(records: Records) -> list[Run]:
    """Runs that ended with numbers, by seed."""
    return sorted((run for run in ended(records) if run["outcome"] == "done"), key=lambda run: run["seed"])


def missing(*parts: Records) -> int:
    """Runs that were asked for and did not end."""
    return sum(len(part.asked) - len(ended(part)) for part in parts)


def n_hidden_of(run: Run) -> int:
    """Hidden layers H of a run's network."""
    return int(run["config.network.n_hidden"])


def width_of(run: Run) -> int:
    """Width N of a run's network."""
    return int(run["config.network.width"])


def with_rows(part: Records) -> list[tuple[Run, Any]]:
    """Runs and their rows, of those that have any."""
    found = ((run, part.lane(run["cell"], run["lane"])) for run in part.runs.iter_rows(named=True))
    return [(run, rows) for run, rows in found if len(rows)]


def curve(records: Records, run: Run, *columns: str) -> list[np.ndarray]:
    """Iterations and these columns of a run's rows, where all of them were measured."""
    rows = records.lane(run["cell"], run["lane"])
    if not set(columns) <= set(rows.columns):
        return [np.zeros(0)] * (1 + len(columns))
    rows = rows.select("iteration", *columns).drop_nulls()
    return [rows[name].to_numpy() for name in rows.columns]


def vectors(rows: Any, name: str) -> np.ndarray:
    """A recorded vector in each of these rows, one column an entry, without entries that none has: those of other nets."""
    columns = [f"{name}_{i}" for i in range(1, len(rows.columns)) if f"{name}_{i}" in rows.columns]
    table = rows.select(columns).to_numpy().astype(float)
    return table[:, ~np.all(np.isnan(table), axis=0)]


def arm_of_an_l(found: Sequence[T], along: Callable[[T], int], across: Callable[[T], int]) -> list[T]:
    """One arm of an L-shaped grid, smallest first: what has the size `across` at which there are most sizes `along`."""
    counts = Counter(size for size, _ in {(across(one), along(one)) for one in found})
    fixed = max(sorted(counts), key=lambda size: counts[size], default=None)
    return sorted((one for one in found if across(one) == fixed), key=along)


def pairs(runs: Iterable[Run], others: Iterable[Run], *same: str) -> list[tuple[Run, Run]]:
    """Each run with the one of the others that has its seed (and the `same` values in these columns), where there is one."""
    of = {tuple(other[name] for name in ("seed", *same)): other for other in others}
    named = ((run, tuple(run[name] for name in ("seed", *same))) for run in runs)
    return [(run, of[name]) for run, name in named if name in of]


def pc_and_bp(part: Records) -> tuple[list[tuple[Run, Run]], int]:
    """(PC, BP) runs of the same seed, and how many pairs that were asked for are missing."""
    pc, bp = (part.select(learning=learning) for learning in ("pc", "bp"))
    both = pairs(done(pc), done(bp))
    return both, len(pc.asked) - len(both)


def ratios_of(parts: Mapping[str, Records], ratio: Callable[[Run, Run], Ratio]) -> tuple[dict[str, list[Ratio]], int]:
    """Of each kind the `ratio` of every (PC, BP) pair, and how many pairs are missing."""
    found = {kind: pc_and_bp(part) for kind, part in parts.items()}
    ratios = {kind: [ratio(pc, bp) for pc, bp in both] for kind, (both, _) in found.items()}
    return ratios, sum(missing for _, missing in found.values())


def insufficient(records: Records, expected: str, why: str, *, scale: str | None = None) -> Verdict:
    """The verdict where records cannot decide, with the command that would settle it: at another scale, perhaps."""
    command = records.command
    if scale is not None:
        command = re.sub(r" scale=\S+", "", command) + f" scale={scale}"
    return Verdict("insufficient", why, f"run {command}", expected, 0, records.scale)


class Case(NamedTuple):
    """Whether a claim holds for one seed (of one activation, say), and the number that says so."""

    holds: bool
    value: float


def verdict(
    records: Records,
    expected: str,
    cases: Iterable[tuple[str, Case | None]],
    *,
    n: int | None = None,
    missing: int = 0,
) -> Verdict:
    """Reproduced if every case of every kind holds and nothing is missing; one case that does not hold refutes.

    `cases` come with their kind (activation, say), None for one that is missing. `n` counts the runs that they rest on (one a
    case, if not said), `missing` those asked for without numbers.
    """
    by_kind: dict[str, list[Case]] = defaultdict(list)
    for kind, case in cases:
        if case is None:
            missing += 1
        else:
            by_kind[kind].append(case)
    n = sum(map(len, by_kind.values())) if n is None else n
    values = {kind: [case.value for case in found] for kind, found in by_kind.items()}
    observed = ", ".join(f"{kind} {np.median(found):.3g}" for kind, found in values.items())
    refuted = any(not case.holds for found in by_kind.values() for case in found)
    if not values or (missing and not refuted):
        counted = f"{missing} of {n + missing} runs missing" if n + missing else "no runs"
        return insufficient(records, expected, "; ".join(filter(None, (counted, observed))))
    interval = "; ".join(f"{kind} {spread(found)}" for kind, found in values.items())
    return Verdict("not_reproduced" if refuted else "reproduced", observed, interval, expected, n, records.scale)


def paired(
    records: Records,
    expected: str,
    ratios: Mapping[str, Sequence[Ratio]],
    holds: Callable[[float], bool] = lambda ratio: ratio > 1,
    *,
    missing: int,
) -> Verdict:
    """Reproduced if the ratio of every pair of every kind `holds` (as any larger one does), and no pair is missing.

    A bound decides where it can: a lower one that holds does, an upper one that does not refutes.
    """
    found = [ratio for of_kind in ratios.values() for ratio in of_kind]
    refuted = any(r.bound in ("exact", "at_most") and not holds(r.value) for r in found)
    undecided = sum(r.bound == "unknown" or (r.bound == "at_least" and not holds(r.value)) for r in found)
    undecided += sum(r.bound == "at_most" and holds(r.value) for r in found)
    shown = ratios_shown(records, expected, ratios, reproduced=not refuted)
    if not refuted and (undecided or missing or not found):
        counted = f"{undecided} undecided and {missing} missing of {len(found) + missing} pairs"
        return insufficient(records, expected, "; ".join(filter(None, (counted, shown.observed))))
    return shown


def ratios_shown(
    records: Records, expected: str, ratios: Mapping[str, Sequence[Ratio]], *, reproduced: bool
) -> Verdict:
    """A verdict that shows the median ratio of each kind, and those of all pairs."""
    there = {kind: found for kind, found in ratios.items() if found}
    observed = ", ".join(f"{kind} {median_ratio(found)}" for kind, found in there.items())
    interval = "; ".join(f"{kind} {spread(found)}" for kind, found in there.items())
    n = sum(map(len, there.values()))
    return Verdict("reproduced" if reproduced else "not_reproduced", observed, interval, expected, n, records.scale)
