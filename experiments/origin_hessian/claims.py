"""Runs of the study, what lies in their rows, and what is claimed of the Hessians: equality of routes, signs of eigenvalues,
orders of saddles. Thresholds were set before the runs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pcexp.report import claims
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, n_hidden_of, vectors, width_of

SPECTRA = ("theory_loss", "theory_equilibrated", "numeric_loss", "numeric_equilibrated", "unrolled")
MATRICES = ("hessian_loss", "hessian_theory", "hessian_numeric")
CHANGES = ("loss_change", "equilibrated_change")
MOST_ROWS = 60
"""Rows of a lane that are kept where records are committed."""


def in_rows(
    numbers: Mapping[str, Any], spectra: Mapping[str, np.ndarray], matrices: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Rows that hold all entries: `iteration` counts them, numbers are in each, the last ones are filled with zeros."""
    size = len(next(iter(spectra.values())))
    each = -(-size // MOST_ROWS)
    count = -(-size // each)

    def cut(array: np.ndarray) -> np.ndarray:
        filled = np.concatenate([array, np.zeros((count * each - size, *array.shape[1:]))])
        return filled.reshape(count, -1)

    parts = {name: cut(array) for name, array in spectra.items()}
    parts |= {f"hessian_{name}": cut(array) for name, array in matrices.items()}
    for row in range(count):
        yield {"iteration": row, **numbers, **{name: part[row] for name, part in parts.items()}}


def found(records: Records, run: Run) -> dict[str, np.ndarray]:
    """What the rows of a run that is done hold, by name: spectra, matrices where they were kept, changes along the ray."""
    rows, size = records.lane(run["cell"], run["lane"]), int(run["size"])
    tables = {name: vectors(rows, name) for name in (*SPECTRA, *MATRICES, *CHANGES)}
    held = {name: tables[name].ravel()[:size] for name in SPECTRA}
    held |= {name: tables[name].reshape(-1, size)[:size] for name in MATRICES if tables[name].size}
    return held | {name: tables[name][:1].ravel() for name in CHANGES}


ARMS = {"origin": ("origin", "wide"), "chain": ("chain",), "saddle": ("saddle",)}
"""Blocks of nets at the origin, of chains there, and of nets at the saddle of B.3."""
SADDLE = "config.study.saddle"


def of_arms(records: Records, *arms: str) -> Records:
    return records.select(block=[block for arm in arms for block in ARMS[arm]])


def done(records: Records, *arms: str) -> list[Run]:
    """Runs with numbers of these arms, from the shallowest, by width, target and seed."""
    runs = claims.done(of_arms(records, *arms))
    return sorted(runs, key=lambda run: (n_hidden_of(run), width_of(run), target(run), run["seed"]))


def target(run: Run) -> str:
    """The second target of the toy data; empty for images."""
    return str(run.get("config.data.second_target") or "")


def described(run: Run) -> str:
    """A net in a few words, for a panel."""
    toy = {"x": r", $y_2 = x_2$ (text)", "independent": r", $y_2$ independent (code)"}
    return f"H = {n_hidden_of(run)}, N = {width_of(run)}{toy.get(target(run), '')}"


EXACT, FACTOR, UNROLLED = 1e-10, 1e-6, 1e-5
NEGATIVE = -1e-6
ORDER = 0.05


def below(limit: float, *columns: str) -> Callable[[Run], Case | None]:
    """The largest of these numbers is below a limit; nothing is said of a run that lacks one."""

    def case(run: Run) -> Case | None:
        values = [run[column] for column in columns if run.get(column) is not None]
        return Case(max(values) < limit, float(max(values))) if len(values) == len(columns) else None

    return case


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


CLOSED = ("closed_loss_difference", "closed_equilibrated_difference")
SAME_SPECTRA = ("spectrum_loss_difference", "spectrum_equilibrated_difference")
AUTODIFF = "are those of automatic differentiation"
STRICT, NULL = f"lambda_min < {NEGATIVE:g}", f"largest eigenvalue in size < {EXACT:g}"
OF_AN_ENTRY, OF_AN_EIGENVALUE = "largest difference of an entry <", f"largest difference of an eigenvalue < {EXACT:g}"


def _each(
    figure: str,
    statement: str,
    expected: str,
    case: Callable[[Run], Case | None],
    holds_for: Callable[[int], bool] = lambda _: True,
    arms: tuple[str, ...] = ("origin", "chain"),
) -> Claim:
    """One case a run of these arms whose n_hidden `holds_for` takes; a run without numbers leaves the claim open."""

    def judge(records: Records) -> Verdict:
        runs = done(records, *arms)
        # How deep a run without numbers would have been is not among the labels: any of these arms may count.
        lost = len(of_arms(records, *arms).asked) - len(runs)
        cases = [(f"H = {n_hidden_of(run)}", case(run)) for run in runs if holds_for(n_hidden_of(run))]
        if not cases and not lost:
            return claims.insufficient(records, expected, "no such net")
        return claims.verdict(records, expected, cases, missing=lost)

    return Claim(figure, statement, judge)


def _at_the_saddle(figure: str, h: int) -> Iterator[Claim]:
    form = f"form < {NEGATIVE:g}, equal to v^T H v to {EXACT:g} of it; gradients < {EXACT:g}"
    same = below(EXACT, *CLOSED, *SAME_SPECTRA)
    for statement, expected, case in (
        ("a critical point, with theorem 3.3's form -1/B sum y^T A y < 0 along W_L", form, _form),
        ("the saddle of rank zero is strict for F*", STRICT, below(NEGATIVE, "numeric_equilibrated_lowest")),
        ("the Hessian of the loss is null there", NULL, _null),
        (f"closed forms and spectra there {AUTODIFF}", f"largest difference < {EXACT:g}", same),
    ):
        yield _each(figure, f"H = {h}: {statement}", expected, case, lambda n_hidden: n_hidden == h, ("saddle",))


CLAIMS = (
    _each(
        "4.4", f"4.3, 4.4, B.2: Hessians at the origin in closed form (Eqs 4.6, 4.8) {AUTODIFF}",
        f"{OF_AN_ENTRY} {EXACT:g}", below(EXACT, *CLOSED, "outside"),
    ),
    _each("4.4", "4.3, 4.4, B.2: so are their spectra", OF_AN_EIGENVALUE, below(EXACT, *SAME_SPECTRA)),
    _each(
        "4.4", "T = 50 unrolled steps give Eq. 4.8 with its block of W_L times 1 - (1 - beta)^(2T)",
        f"{OF_AN_ENTRY} {FACTOR:g}", below(FACTOR, "unrolled_50_block_difference"),
    ),
    _each(
        "4.4", "T = 60 unrolled steps give Eq. 4.8",
        f"{OF_AN_ENTRY} {UNROLLED:g} of the largest", below(UNROLLED, "unrolled_60_relative"),
    ),
    _each(
        "4.4", "theorem 3.2: for H > 1 the spectrum of F* is minus eig(Sigma_yy), each N times, and zeros",
        OF_AN_EIGENVALUE, below(EXACT, "theorem_difference"), lambda h: h > 1,
    ),
    _each("4.4", "the origin is a strict saddle of F* for all H", STRICT, below(NEGATIVE, "numeric_equilibrated_lowest")),
    _each("4.4", "of the loss for H = 1", STRICT, below(NEGATIVE, "numeric_loss_lowest"), lambda h: h == 1),
    _each("4.4", "and not for H > 1: the Hessian of the loss is null", NULL, _null, lambda h: h > 1),
    _each(
        "orders", "from the origin, along a generic ray, the loss changes as d^(H+1) and F* as d^2",
        f"slopes within {ORDER:g} of H + 1 and 2", _order,
    ),
    *_at_the_saddle("B.3", 3),
    *_at_the_saddle("B.4", 4),
    _each(
        "orders", "from the saddle of rank zero the loss changes as d^H and F* as d^2",
        f"slopes within {ORDER:g} of H and 2", _order, arms=("saddle",),
    ),
)  # fmt: skip
