"""Figures of the study: heat maps, spectra with theory as lines, and changes along rays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcexp.experiments.origin_hessian.claims import MATRICES, SADDLE, described, done, found
from pcexp.experiments.origin_hessian.measured import DISTANCES
from pcexp.report import plotting
from pcexp.report.claims import Records, Run, n_hidden_of

NUMERIC, UNROLLED, OF_LOSS = "#c1272d", "#e08214", "#3b6ea5"
HEAT = dict(zip(MATRICES, (r"loss (Eq. 4.6)", r"$F^*$, theory (Eq. 4.8)", r"$F^*$, numeric"), strict=True))
SPECTRA = {"loss": ("loss", OF_LOSS), "equilibrated": (r"$F^*$", NUMERIC)}
"""Which spectra are counted: their label and colour."""
BINS = 41


def _first_of_each(runs: Sequence[Run]) -> list[Run]:
    """The lowest seed of every net."""
    return list({described(run): run for run in reversed(runs)}.values())[::-1]


def _legend(figure: plotting.Figure, of_loss: Any) -> plotting.Figure:
    """The figure with marks of theory and of the numeric eigenvalues; `of_loss` is that of the loss."""
    marks = [
        plotting.mark("theory", plotting.COLOURS["theory"]),
        plotting.dots(r"$F^*$, autodiff through the exact solve", NUMERIC),
        plotting.dots("energy after 50 steps of inference", UNROLLED, "x", ms=5),
        of_loss,
    ]
    return plotting.legend(figure, marks)


def _eigenvalues(axis: plotting.Axes, spectra: dict[str, np.ndarray]) -> None:
    """Sorted eigenvalues: theory as a line, the numeric ones as marks."""
    index = np.arange(1, len(spectra["numeric_equilibrated"]) + 1)
    # Chains have two or three of them: marks of each size stay apart where they agree.
    axis.plot(index, spectra["numeric_loss"], "s", ms=5.5, mfc="none", mew=0.7, color=OF_LOSS)
    axis.plot(index, spectra["unrolled"], "x", ms=5, mew=0.9, color=UNROLLED)
    axis.plot(index, spectra["numeric_equilibrated"], "o", ms=2.6, color=NUMERIC)
    for name in ("theory_loss", "theory_equilibrated"):
        axis.plot(index, spectra[name], color=plotting.COLOURS["theory"], lw=0.7, zorder=5)
    axis.set(xlabel="index", ylabel="eigenvalue")


def _heat_maps(records: Records, arm: str, title: str) -> plotting.Figure | None:
    """Rows are nets: the three Hessians, scaled to +-1 each, and the eigenvalues."""
    runs = _first_of_each(done(records, arm))
    kept = [(run, held) for run in runs if MATRICES[0] in (held := found(records, run))]
    if not kept:
        return None
    figure, axes = plotting.panels(len(kept), 4, title, width=2.7, height=2.35)
    for row, (run, held) in zip(axes, kept, strict=True):
        for axis, (name, label) in zip(row, HEAT.items(), strict=False):
            matrix = held[name]
            scale = float(np.max(np.abs(matrix)))
            shown = matrix / scale if scale else matrix
            axis.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axis.grid(visible=False)
            ticks = sorted({0, (len(matrix) - 1) // 2, len(matrix) - 1})
            names = [str(t + 1) for t in ticks]
            axis.set(xticks=ticks, xticklabels=names, yticks=ticks, yticklabels=names)
            axis.set_title(label + (f", scale {scale:.2g}" if scale else ", all zero"), fontsize=8)
        row[0].set_ylabel(described(run).replace(", $y_2", "\n$y_2") + "\nweight", fontsize=8)
        figure.colorbar(row[2].images[0], ax=list(row[:3]), ticks=[-1, 0, 1], fraction=0.02, pad=0.01, aspect=14)
        _eigenvalues(row[3], held)
        plotting.caption(row[3], records.about, 1)
    for axis in axes[-1][:3]:
        axis.set_xlabel("weight, from the input to $W_L$")
    return _legend(figure, plotting.dots("loss, autodiff", OF_LOSS, "s", mfc="none"))


def _counts(axis: plotting.Axes, records: Records, run: Run, name: str) -> None:
    """One spectrum of a run, of the loss or of F*: counts of numeric eigenvalues as bars, of the theory as a line over them."""
    spectra, (label, colour) = found(records, run), SPECTRA[name]
    numeric, theory = spectra[f"numeric_{name}"], spectra[f"theory_{name}"]
    low, high = min(numeric.min(), theory.min()), max(numeric.max(), theory.max())
    margin = 0.08 * (high - low) if high - low > 1e-9 else 1.0
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    edges += (edges[1] - edges[0]) * 0.5 - (edges - 0)[np.argmin(np.abs(edges))]  # zero in the middle of a bin
    counts, _ = np.histogram(numeric, edges)
    lines, _ = np.histogram(theory, edges)
    axis.stairs(counts, edges, fill=True, color=colour, alpha=0.55)
    axis.stairs(np.where(lines > 0, lines, 0.0), edges, color=plotting.COLOURS["theory"], lw=0.9)
    axis.set_yscale("log")
    axis.set(ylim=(0.6, 3 * max(lines.max(), 1)), xlabel="eigenvalue")
    axis.set_title(f"{label}: {described(run)}", loc="left", fontsize=8, pad=14)
    plotting.caption(axis, f"{records.about}, {int(run['size'])} weights", 1)


def _saddle(records: Records, n_hidden: int, title: str) -> plotting.Figure:
    """Counts of eigenvalues of one draw, and the sorted eigenvalues that are not zero of all draws."""
    runs = [run for run in done(records, "saddle") if n_hidden_of(run) == n_hidden]
    figure, axes = plotting.panels(1, 3, title, width=3.1, height=2.4)
    if not runs:
        for axis in axes[0]:
            plotting.note(axis, "no runs yet")
        return figure
    *counts, third = axes[0]
    for axis, name in zip(counts, SPECTRA, strict=True):
        _counts(axis, records, runs[0], name)
        axis.set_ylabel("eigenvalues in a bin")
    for run in runs:
        held = found(records, run)
        count = int(np.sum(held["theory_equilibrated"] < -1e-9))
        index = np.arange(1, count + 1)
        third.plot(index, held["unrolled"][:count], "x", ms=5, mew=0.9, color=UNROLLED)
        third.plot(index, held["numeric_equilibrated"][:count], "o", ms=2.4, color=NUMERIC)
        third.plot(index, held["theory_equilibrated"][:count], color=plotting.COLOURS["theory"], lw=0.7)
    third.set_title(r"$F^*$: negative eigenvalues, all draws", loc="left", fontsize=8, pad=14)
    third.set(xlabel="index", ylabel="eigenvalue")
    plotting.caption(third, records.about, len(runs))
    return _legend(figure, plotting.patch("loss, autodiff", OF_LOSS, alpha=0.55))


AT_THE_SADDLE = "eigenvalues at the saddle where only the penultimate matrix is not zero"


def figure_4_3(records: Records) -> plotting.Figure | None:
    """Hessians at the origin of linear nets on toy data, each scaled to +-1, and their eigenvalues: F* has negative curvature in
    W_L at every depth, the loss at H = 1 only. The published Hessian of the loss is Eq. 4.6 over K, drawn here as Eq. 4.6.
    """
    return _heat_maps(
        records, "origin", "Figure 4.3: Hessians at the origin of the loss and of the equilibrated energy"
    )


def figure_b_2(records: Records) -> plotting.Figure | None:
    """Hessians at the origin of linear chains, as in 4.3: of the loss nothing is left for H > 1. F* keeps one negative
    eigenvalue, minus the mean of y^2, at the output weight.
    """
    return _heat_maps(records, "chain", "Figure B.2: Hessians at the origin of linear chains")


def figure_4_4(records: Records) -> plotting.Figure:
    """Spectra at the origin, theory as lines over counts of numeric eigenvalues, first batch: minus the eigenvalues of Sigma_yy,
    each N times, for F*, and zeros for the loss of nets with H > 1. Most eigenvalues are zero, hence the logarithmic counts.
    """
    shown = _first_of_each(done(records, "origin"))
    title, columns = "Figure 4.4: eigenvalues at the origin", max(len(shown), 1)
    figure, axes = plotting.panels(2, columns, title, y="eigenvalues in a bin", width=2.7, height=2.1)
    for row, name in zip(axes, SPECTRA, strict=True):
        for axis, run in zip(row, shown, strict=False):
            _counts(axis, records, run, name)
        if not shown:
            plotting.note(row[0], "no runs yet")
    marks = [
        plotting.mark("theory", plotting.COLOURS["theory"]),
        plotting.patch("loss, autodiff", OF_LOSS, alpha=0.55),
        plotting.patch(r"$F^*$, autodiff through the exact solve", NUMERIC, alpha=0.55),
    ]
    return plotting.legend(figure, marks)


def figure_b_3(records: Records) -> plotting.Figure:
    """Spectra at the saddle of rank zero of a net with H = 3, where only W_3 is not zero: null for the loss, negative for F*.
    The energy after 50 steps lies above theory where inference has not converged.
    """
    return _saddle(records, 3, f"Figure B.3: {AT_THE_SADDLE}, H = 3")


def figure_b_4(records: Records) -> plotting.Figure:
    """As B.3, of a net with H = 4, where only W_4 is not zero: null for the loss, negative for F*.
    The eigenvalues of F* are minus those of Sigma_yy times those of I + W_4 W_4^T.
    """
    return _saddle(records, 4, f"Figure B.4: {AT_THE_SADDLE}, H = 4")


def figure_orders(records: Records) -> plotting.Figure:
    """Changes of the loss and of F* along one generic ray a seed from the origin (and from the saddle of B.3): the loss changes
    as d^(H+1) (as d^H from the saddle), F* as d^2 at every depth. Slopes are fitted to these points, in float64.
    """
    runs = done(records, "origin", "chain", "saddle")
    depths = sorted({n_hidden_of(run) for run in runs})
    colours = plotting.shades(depths)
    title, labels = "Order of the saddle along generic rays", ("distance d", "absolute change")
    figure, axes = plotting.panels(1, 2, title, *labels, width=3.8, height=2.9)
    points = {False: "from the origin", True: "from the saddle of B.3 and B.4"}
    for axis, (saddle, label) in zip(axes[0], points.items(), strict=True):
        part = [run for run in runs if bool(run[SADDLE]) == saddle]
        for run in part:
            changes = found(records, run)
            for name, style in (("loss_change", "-"), ("equilibrated_change", ":")):
                size = np.abs(changes[name])
                size[size < np.finfo(np.float32).tiny] = np.nan  # records hold float32
                axis.plot(DISTANCES, size, style, color=colours[n_hidden_of(run)], lw=1.0)
        axis.set(xscale="log", yscale="log")
        plotting.dress(axis, records.about, len(part), label, pad=14)
    marks = [plotting.mark(f"H = {h}", colours[h]) for h in depths]
    styles = [plotting.mark(n, ls=s) for s, n in (("-", "loss"), (":", "$F^*$"))]
    return plotting.legend(figure, [*marks, *styles], columns=8)


FIGURES = {
    "4.3": figure_4_3,
    "4.4": figure_4_4,
    "B.2": figure_b_2,
    "B.3": figure_b_3,
    "B.4": figure_b_4,
    "orders": figure_orders,
}
