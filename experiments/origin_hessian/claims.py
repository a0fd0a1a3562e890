"""What is claimed of the Hessians: equality of routes, signs of eigenvalues, orders of saddles. Thresholds were set
before the runs.
"""

from collections.abc import Callable, Iterator

from experiments.origin_hessian.runs import SADDLE, blocks, done
from pcexp.report.claims import Case, Claim, Records, Rule, Run, Verdict, insufficient, n_hidden_of, rule, verdict

EXACT, FACTOR, UNROLLED = 1e-10, 1e-6, 1e-5
NEGATIVE = -1e-6
ORDER = 0.05
ORIGIN = ("origin", "chain")


@rule
def _each(
    records: Records,
    expected: str,
    case: Callable[[Run], Case | None],
    arms: tuple[str, ...] = ORIGIN,
    holds_for: Callable[[int], bool] = lambda n_hidden: True,
) -> Verdict:
    """One case a run of these arms whose n_hidden `holds_for` takes; a run without numbers leaves the claim open."""
    runs = done(records, *arms)
    # How deep a run without numbers would have been is not among the labels: any of these arms may count.
    lost = len(records.select(block=blocks(*arms)).asked) - len(runs)
    cases = [(f"H = {n_hidden_of(run)}", case(run)) for run in runs if holds_for(n_hidden_of(run))]
    if not cases and not lost:
        return insufficient(records, expected, "no such net")
    return verdict(records, expected, cases, missing=lost)


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
    expected = n_hidden_of(run) + (0 if run[SADDLE] else 1)
    holds = abs(run["loss_order"] - expected) < ORDER and abs(run["equilibrated_order"] - 2) < ORDER
    return Case(holds, run["loss_order"])


def _form(run: Run) -> Case:
    agrees = abs(run["form"] - run["form_numeric"]) < EXACT * abs(run["form"])
    return Case(agrees and run["form"] < NEGATIVE and run["gradient"] < EXACT, run["form"])


def _deep(n_hidden: int) -> bool:
    return n_hidden > 1


CLOSED = ("closed_loss_difference", "closed_equilibrated_difference")
SPECTRA = ("spectrum_loss_difference", "spectrum_equilibrated_difference")
STRICT, NULL = f"lambda_min < {NEGATIVE:g}", f"largest eigenvalue in size < {EXACT:g}"
OF_AN_ENTRY, OF_AN_EIGENVALUE = "largest difference of an entry <", f"largest difference of an eigenvalue < {EXACT:g}"


def _at_the_saddle(figure: str, h: int) -> Iterator[Claim]:
    def judge(expected: str, case: Callable[[Run], Case | None]) -> Rule:
        return _each(expected, case, ("saddle",), lambda n_hidden: n_hidden == h)

    form = f"form < {NEGATIVE:g}, equal to v^T H v to {EXACT:g} of it; gradients < {EXACT:g}"
    statement = f"H = {h}: a critical point, with theorem 3.3's form -1/B sum y^T A y < 0 along W_L"
    yield Claim(figure, statement, judge(form, _form))
    strict = judge(STRICT, _negative("numeric_equilibrated"))
    yield Claim(figure, f"H = {h}: the saddle of rank zero is strict for F*", strict)
    yield Claim(figure, f"H = {h}: the Hessian of the loss is null there", judge(NULL, _null))
    same = judge(f"largest difference < {EXACT:g}", below(EXACT, *CLOSED, *SPECTRA))
    yield Claim(figure, f"H = {h}: closed forms and spectra there are those of automatic differentiation", same)


CLAIMS = (
    Claim(
        "4.4",
        "4.3, 4.4, B.2: Hessians at the origin in closed form (Eqs 4.6, 4.8) are those of automatic differentiation",
        _each(f"{OF_AN_ENTRY} {EXACT:g}", below(EXACT, *CLOSED, "outside")),
    ),
    Claim("4.4", "4.3, 4.4, B.2: so are their spectra", _each(OF_AN_EIGENVALUE, below(EXACT, *SPECTRA))),
    Claim(
        "4.4",
        "T = 50 unrolled steps give Eq. 4.8 with its block of W_L times 1 - (1 - beta)^(2T)",
        _each(f"{OF_AN_ENTRY} {FACTOR:g}", below(FACTOR, "unrolled_50_block_difference")),
    ),
    Claim(
        "4.4",
        "T = 60 unrolled steps give Eq. 4.8",
        _each(f"{OF_AN_ENTRY} {UNROLLED:g} of the largest", below(UNROLLED, "unrolled_60_relative")),
    ),
    Claim(
        "4.4",
        "theorem 3.2: for H > 1 the spectrum of F* is minus eig(Sigma_yy), each N times, and zeros",
        _each(OF_AN_EIGENVALUE, below(EXACT, "theorem_difference"), holds_for=_deep),
    ),
    Claim("4.4", "the origin is a strict saddle of F* for all H", _each(STRICT, _negative("numeric_equilibrated"))),
    Claim("4.4", "of the loss for H = 1", _each(STRICT, _negative("numeric_loss"), holds_for=lambda h: h == 1)),
    Claim("4.4", "and not for H > 1: the Hessian of the loss is null", _each(NULL, _null, holds_for=_deep)),
    Claim(
        "orders",
        "from the origin, along a generic ray, the loss changes as d^(H+1) and F* as d^2",
        _each(f"slopes within {ORDER:g} of H + 1 and 2", _order),
    ),
    *_at_the_saddle("B.3", 3),
    *_at_the_saddle("B.4", 4),
    Claim(
        "orders",
        "from the saddle of rank zero the loss changes as d^H and F* as d^2",
        _each(f"slopes within {ORDER:g} of H and 2", _order, ("saddle",)),
    ),
)
