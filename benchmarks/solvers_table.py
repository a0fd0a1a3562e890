"""The page of benchmarks/solvers.py: one table a net, from the lines of the history."""

import json
import math
from collections.abc import Sequence
from typing import Any

HEAD = """# Inference solvers

Written by `python benchmarks/solvers.py` from `benchmarks/history.jsonl`. Each entry is *steps / forward passes / seconds* of one solve
from the forward pass (which is in its seconds, as are the solver's own estimates) to a residual of 1e-2, 1e-4, 1e-6 of what it is there. The
residual is the root mean square of dF_b/dz over hidden units and samples. Matrix products are counted in forward passes, as each
solver's `forward_passes()` says; a gradient evaluation is two. Digits (64 inputs), one-hot targets, one freshly drawn net (seed 0), pre-activation,
deviations, float64 unless a line says otherwise.

Step sizes: `momentum` and `error_descent` by their own estimates; gradient_descent 1 or 1.9, sequential 1, 1.9 or 3, over the largest
eigenvalue of the activity Hessian (worst sample, at the forward pass); adam .01, .03 or .1. The one that is first at 1e-2, or
nearest to it after 500 steps, is kept; `of grid` says which.

`> n`: not there after n steps. `energy`: the solve ended where its energy stood still (energy_tol 1e-6, asked for with relu only), and did
not converge: relu's kinks leave no small residual. Nothing in a column: not there either. *Residual* and *above lowest* are those where the last solve ended: the energy's
distance to the lowest that any solver of that net ended at, over that energy. *above lowest* is fair only between solves of one target.

"""


def written(records: Sequence[dict[str, Any]], targets: Sequence[str]) -> str:
    """The page in Markdown; of a solver that was measured twice, the later time."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        cells.setdefault(json.dumps(record["cell"]), {}).update(record["solvers"])
    groups: dict[str, list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]] = {}
    for key, solvers in cells.items():
        cell = json.loads(key)
        groups.setdefault(_title(cell), []).append((cell, solvers))
    parts = [HEAD, _about(records)]
    for title in sorted(groups):
        parts.append(f"\n## {title}\n\n")
        columns = ("H", "N", "batch", "solver", "of grid", *targets, "ended by", "residual", "above lowest")
        parts += [_row(columns), _row(["---"] * len(columns))]
        for cell, solvers in sorted(groups[title], key=_order):
            parts += [_row(line) for line in _lines(cell, solvers, targets)]
    return "".join(parts)


def _title(cell: dict[str, Any]) -> str:
    name = {"MuPC": "muPC", "Standard": "SP"}[cell["parameterisation"]]
    return f"{name} {'with' if cell['skips'] else 'without'} skips, {cell['activation']}"


def _order(group: tuple[dict[str, Any], Any]) -> tuple[int, int, int, bool]:
    cell = group[0]
    return cell["width"], cell["n_hidden"], cell["batch"], cell["precision"] != "float64"


def _about(records: Sequence[dict[str, Any]]) -> str:
    if not records:
        return "Nothing is measured yet.\n"
    machines = sorted({f"{r['about']['cpu_model']}, {r['about']['cpu_count']} cores" for r in records})
    versions = sorted({f"jax {r['about']['jax_version']}" for r in records})
    dates = sorted(r["about"]["date"][:10] for r in records)
    rates = [r["gflops_2048"] for r in records]
    loads = [r["load"] / r["about"]["cpu_count"] for r in records]
    busy = " Other work ran beside it: seconds are provisional, steps and forward passes are not." * (max(loads) > 1.5)
    return (
        f"{'; '.join(machines)}; {', '.join(versions)}; {dates[0]} to {dates[-1]}; a 2048^3 float32 product at {min(rates):.0f} "
        f"to {max(rates):.0f} GFLOP/s; load a core {min(loads):.1f} to {max(loads):.1f}.{busy}\n"
    )


def _lines(cell: dict[str, Any], solvers: dict[str, dict[str, Any]], targets: Sequence[str]) -> list[list[str]]:
    energies = [e["end"]["energy"] for e in solvers.values() if e["end"]["energy"] is not None]
    lowest = min(energies, default=math.nan)
    lines = []
    for name, entry in solvers.items():
        end, shown = entry["end"], f" ({cell['precision']})" * (cell["precision"] != "float64")
        above = "" if end["energy"] is None else f"{(end['energy'] - lowest) / lowest:.0e}"
        lines.append(
            [
                *(str(cell[key]) for key in ("n_hidden", "width", "batch")),
                name + shown,
                str(entry["setting"].get("of_grid", "")),
                *(_reached(entry, target) for target in targets),
                end["why"] + f": {_price(end)}" * (end["why"] == "energy"),
                "" if end["residual"] is None else f"{end['residual']:.0e}",
                above,
            ]
        )
    return lines


def _reached(entry: dict[str, Any], target: str) -> str:
    found = entry["targets"].get(target)
    if found is not None:
        return _price(found)
    return f"> {entry['cap']:,}" if entry["end"]["why"] == "cap" else ""


def _price(found: dict[str, Any]) -> str:
    return f"{found['steps']:,} / {found['forward_passes']:,.0f} / {found['seconds']:.2g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
