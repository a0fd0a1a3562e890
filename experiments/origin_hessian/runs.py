"""Runs of the study, and how spectra and matrices lie in rows: a few of their entries or rows in each."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pcexp.report import claims
from pcexp.report.claims import Records, Run, n_hidden_of, width_of

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


class Found(NamedTuple):
    """What the rows of a lane hold: spectra by name, matrices where they were kept, changes along the ray."""

    spectra: dict[str, np.ndarray]
    matrices: dict[str, np.ndarray]
    changes: dict[str, np.ndarray]


def found(records: Records, run: Run) -> Found:
    """Spectra, matrices and changes of a run that is done."""
    rows, size = records.lane(run["cell"], run["lane"]), int(run["size"])

    def joined(name: str) -> np.ndarray | None:
        columns = [f"{name}_{i}" for i in range(1, len(rows.columns)) if f"{name}_{i}" in rows.columns]
        table = rows.select(columns).to_numpy().astype(float)
        table = table[:, ~np.all(np.isnan(table), axis=0)]  # columns of other nets, which have more entries a row
        return table if table.size else None

    def tables(*names: str, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        return ((name, table) for name in names if (table := joined(prefix + name)) is not None)

    spectra = tables("theory_loss", "theory_equilibrated", "numeric_loss", "numeric_equilibrated", "unrolled")
    return Found(
        {name: table.ravel()[:size] for name, table in spectra},
        {name: t.reshape(-1, size)[:size] for name, t in tables("loss", "theory", "numeric", prefix="hessian_")},
        {name: table[0] for name, table in tables("loss_change", "equilibrated_change")},
    )


ARMS = {"origin": ("origin", "wide"), "chain": ("chain",), "saddle": ("saddle",)}
"""Blocks of nets at the origin, of chains there, and of nets at the saddle of B.3."""
SADDLE = "config.study.saddle"


def blocks(*arms: str) -> list[str]:
    return [block for arm in arms for block in ARMS[arm]]


def done(records: Records, *arms: str) -> list[Run]:
    """Runs with numbers of these arms, from the shallowest, by width, target and seed."""
    runs = claims.done(records.select(block=blocks(*arms)))
    return sorted(runs, key=lambda run: (n_hidden_of(run), width_of(run), target(run), run["seed"]))


def target(run: Run) -> str:
    """The second target of the toy data; empty for images."""
    return str(run.get("config.data.second_target") or "")


def described(run: Run) -> str:
    """A net in a few words, for a panel."""
    toy = {"x": r", $y_2 = x_2$ (text)", "independent": r", $y_2$ independent (code)"}
    return f"H = {n_hidden_of(run)}, N = {width_of(run)}{toy.get(target(run), '')}"
