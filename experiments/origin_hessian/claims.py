"""What is claimed of the Hessians: equality of routes, signs of eigenvalues, orders of saddles. Thresholds were set
before the runs.
"""

from collections import defaultdict
from collections.abc import Callable

from experiments.origin_hessian.runs import SADDLE, blocks, depth, done
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, insufficient, verdict

EXACT = 1e-10
FACTOR = 1e-6
UNROLLED = 1e-5
NEGATIVE = -1e-6
ORDER = 0.05
ORIGIN = ("origin", "chain")

Rule = Callable[[Records], Verdict]


def rule(
    expected: str,
    case: Callable[[Run], Case | None],
    arms: tuple[str, ...] = ORIGIN,
    holds_for: Callable[[int], bool] = lambda n_hidden: True,
) -> Rule:
    """One case a run of these arms whose n_hidden `holds_for` takes; a run without numbers leaves the claim open."""

    def judged(records: Records) -> Verdict:
        cases: dict[str, list[Case]] = defaultdict(list)
        # How deep a run without numbers would have been is not among the labels: any of these arms may count.
        missing = len(records.select(block=blocks(*arms)).asked) - len(done(records, *arms))
        for run in done(records, *arms):
            if holds_for(depth(run)):
                found = case(run)
                if found is None:
                    missing += 1
                else:
                    cases[f"H = {depth(run)}"].append(found)
        if not cases and not missing:
            return insufficient(records, expected, "no such net")
        return verdict(records, expected, cases, n=sum(map(len, cases.values())), missing=missing)

    return judged


def below(limit: float, *columns: str) -> Callable[[Run], Case | None]:
    """The largest of these numbers is below a limit; nothing is said of a run that lacks one."""

    def case(run: Run) -> Case | None:
        values = [float(value) for column in columns if (value := run.get(column)) is not None]
        if len(values) < len(columns):
            return None
        worst = max(values)
        return Case(worst < limit, worst)

    return case


def _negative(name: str) -> Callable[[Run], Case]:
    return lambda run: Case(run[f"{name}_lowest"] < NEGATIVE, run[f"{name}_lowest"])


def _null(run: Run) -> Case:
    worst = max(-run["numeric_loss_lowest"], run["numeric_loss_highest"])
    return Case(worst < EXACT, worst)


def _order(run: Run) -> Case:
    expected = depth(run) + (0 if run[SADDLE] else 1)
    holds = abs(run["loss_order"] - expected) < ORDER and abs(run["equilibrated_order"] - 2) < ORDER
    return Case(holds, run["loss_order"])


def _form(run: Run) -> Case:
    agrees = abs(run["form"] - run["form_numeric"]) < EXACT * abs(run["form"])
    return Case(agrees and run["form"] < NEGATIVE and run["gradient"] < EXACT, run["form"])


def _only(h: int) -> Callable[[int], bool]:
    return lambda n_hidden: n_hidden == h


def _deep(n_hidden: int) -> bool:
    return n_hidden > 1


CLOSED = below(EXACT, "closed_loss_difference", "closed_equilibrated_difference", "outside")
SPECTRA = below(EXACT, "spectrum_loss_difference", "spectrum_equilibrated_difference")

CLAIMS = (
    Claim(
        "4.4",
        "4.3, 4.4, B.2: Hessians at the origin in closed form (Eqs 4.6, 4.8) are those of automatic differentiation",
        rule(f"largest difference of an entry < {EXACT:g}", CLOSED),
    ),
    Claim(
        "4.4",
        "4.3, 4.4, B.2: so are their spectra",
        rule(f"largest difference of an eigenvalue < {EXACT:g}", SPECTRA),
    ),
    Claim(
        "4.4",
        "T = 50 unrolled steps give Eq. 4.8 with its block of W_L times 1 - (1 - beta)^(2T)",
        rule(f"largest difference of an entry < {FACTOR:g}", below(FACTOR, "unrolled_50_block_difference")),
    ),
    Claim(
        "4.4",
        "T = 60 unrolled steps give Eq. 4.8",
        rule(f"largest difference of an entry < {UNROLLED:g} of the largest", below(UNROLLED, "unrolled_60_relative")),
    ),
    Claim(
        "4.4",
        "theorem 3.2: for H > 1 the spectrum of F* is minus eig(Sigma_yy), each N times, and zeros",
        rule(
            f"largest difference of an eigenvalue < {EXACT:g}", below(EXACT, "theorem_difference"), ORIGIN,
            _deep,
        ),
    ),
    Claim(
        "4.4",
        "the origin is a strict saddle of F* for all H",
        rule(f"lambda_min < {NEGATIVE:g}", _negative("numeric_equilibrated")),
    ),
    Claim(
        "4.4",
        "of the loss for H = 1",
        rule(f"lambda_min < {NEGATIVE:g}", _negative("numeric_loss"), ORIGIN, _only(1)),
    ),
    Claim(
        "4.4",
        "and not for H > 1: the Hessian of the loss is null",
        rule(f"largest eigenvalue in size < {EXACT:g}", _null, ORIGIN, _deep),
    ),
    Claim(
        "orders",
        "from the origin, along a generic ray, the loss changes as d^(H+1) and F* as d^2",
        rule(f"slopes within {ORDER:g} of H + 1 and 2", _order),
    ),
    *(
        claim
        for figure, h in (("B.3", 3), ("B.4", 4))
        for only in [_only(h)]
        for claim in (
            Claim(
                figure,
                f"H = {h}: a critical point, with theorem 3.3's form -1/B sum y^T A y < 0 along W_L",
                rule(
                    f"form < {NEGATIVE:g}, equal to v^T H v to {EXACT:g} of it; gradients < {EXACT:g}", _form,
                    ("saddle",), only,
                ),
            ),
            Claim(
                figure,
                f"H = {h}: the saddle of rank zero is strict for F*",
                rule(
                    f"lambda_min < {NEGATIVE:g}", _negative("numeric_equilibrated"), ("saddle",),
                    only,
                ),
            ),
            Claim(
                figure,
                f"H = {h}: the Hessian of the loss is null there",
                rule(f"largest eigenvalue in size < {EXACT:g}", _null, ("saddle",), only),
            ),
            Claim(
                figure,
                f"H = {h}: closed forms and spectra there are those of automatic differentiation",
                rule(
                    f"largest difference < {EXACT:g}",
                    below(
                        EXACT, "closed_loss_difference", "closed_equilibrated_difference", "spectrum_loss_difference",
                        "spectrum_equilibrated_difference",
                    ),
                    ("saddle",), only,
                ),
            ),
        )
    ),
    Claim(
        "orders",
        "from the saddle of rank zero the loss changes as d^H and F* as d^2",
        rule(f"slopes within {ORDER:g} of H and 2", _order, ("saddle",)),
    ),
)  # fmt: skip
