"""What is unfinished of all studies, in short slots: `python -m pcexp campaign execution.max_minutes=N [NAME ...] [KEY=VALUE ...]`.

Without names it takes every experiment, at scale=thesis unless another is given; a KEY=VALUE applies to each of them, as on
the command line of `python -m pcexp`. Each study runs on its own default data unless `data=` is given; one whose data are
missing is named and skipped. `dry_run=true` lists the order and the remaining cost, and stops. When the budget is used, what
is left is said, and the same command continues; without a budget it runs to the end.

The order. Cells of one study, data set and variant run together: claims are judged on them. Their value is the number of
claims that they decide (one at least), their cost that of their unfinished lanes, and

    largest value / cost first, but a study without evidence at this scale goes before one with evidence;

a study has evidence once all cells of it on some data set are finished or stand earlier in the order. Of those that run together,
cells that were begun come first and then the cheapest, so that a slot leaves as many finished packs as it can.
"""

import argparse
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pcexp.command_line import CONF, speak  # first: it sets what JAX reads when it is imported

# isort: split
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from pcexp.config.composition import Refused, refusal
from pcexp.config.composition import composed as compose
from pcexp.config.plain import suggestion
from pcexp.config.spec import Spec
from pcexp.data import DataError
from pcexp.records import manifest
from pcexp.records.cell import Cell
from pcexp.run.cost import Cost, estimate, listed, machine, too_large
from pcexp.run.progress import duration
from pcexp.run.session import Datasets
from pcexp.run.sweep import Sweep, refusing, sweep


class Piece(NamedTuple):
    """An unfinished cell: study, data and variant, which it is judged by; its name, its seconds, and whether it was begun."""

    labels: tuple[str, str, str]
    cell: str
    cost: float
    begun: bool


def order(pieces: Iterable[Piece], claims: Mapping[str, int], evidence: Collection[str]) -> list[list[Piece]]:
    """Cells that run together, in the order in which they do, by the rule above.

    `claims` counts those of each study; `evidence` names the studies that have some.
    """
    waiting: dict[tuple[str, str, str], list[Piece]] = {}
    for piece in pieces:
        waiting.setdefault(piece.labels, []).append(piece)
    value = {at: max(claims[at[0]], 1) / max(sum(p.cost for p in cells), 1e-9) for at, cells in waiting.items()}
    seen, ordered = set(evidence), []
    while waiting:
        best = min(waiting, key=lambda at: (at[0] in seen, -value[at], at))
        seen.add(best[0])
        ordered.append(sorted(waiting.pop(best), key=lambda piece: (not piece.begun, piece.cost, piece.cell)))
    return ordered


def composed(names: Sequence[str], overrides: Sequence[str], datasets: Datasets) -> tuple[list[Sweep], list[str]]:
    """The sweep of each study (of all without names), and why studies were left out. Raises Refused."""
    sweeps, skipped = [], []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            known = loader.get_group_options("experiment", config_name="config", overrides=list(overrides))
        except HydraException as error:
            raise Refused(refusal(error)) from error
        for name in names:
            if name not in known:
                raise Refused(f"there is no experiment {name}{suggestion(name, known)}; there are {', '.join(known)}")
        for name in names or known:
            try:
                sweeps += [sweep(*found, datasets) for found in compose(loader, [f"+experiment={name}", *overrides])]
            except Refused as error:
                skipped.append(f"{name}: {str(error).removeprefix('pcexp: ')}")
    if not sweeps:
        raise Refused(skipped[0] if skipped else "there are no experiments")
    return sweeps, skipped


class Campaign:
    """The unfinished cells of several studies: their costs, their order, and running them."""

    def __init__(self, sweeps: Sequence[Sweep], skipped: Sequence[str], datasets: Datasets) -> None:
        self.sweeps, self.datasets = sweeps, datasets
        self.costs: dict[str, Cost] = {}
        self._owner: dict[str, tuple[Sweep, Spec]] = {}
        missing, pieces, evidence = Counter[str](), [], set()
        self.claims: dict[str, int] = {}
        for asked in sweeps:
            self.claims[asked.name] = len(getattr(sys.modules[type(asked.specs[0].study).__module__], "CLAIMS", ()))
            if _evidence(asked):
                evidence.add(asked.name)
            for spec in asked.specs:
                handle = asked.handle(spec)
                if spec.cell in self._owner or not (lanes := handle.missing):
                    continue
                try:
                    cost = estimate(spec, self.datasets, len(lanes), asked.execution.workers)
                    if excess := too_large([spec], {spec.cell: cost}):
                        raise ValueError(excess)
                except (DataError, ValueError) as error:
                    missing[f"{asked.name}: {error}"] += 1
                    continue
                self.costs[spec.cell], self._owner[spec.cell] = cost, (asked, spec)
                begun = any(handle.checkpoint("*").parent.glob("*.npz"))
                variant = next(lane.variant for lane in spec.lanes if lane.name in lanes)
                pieces.append(Piece((asked.name, spec.labels["data"], variant), spec.cell, cost.seconds, begun))
        self.skipped = [*skipped, *(f"{reason} ({n} cells)" for reason, n in missing.items())]
        self.order = order(pieces, self.claims, evidence)

    def owner(self, together: Sequence[Piece]) -> tuple[Sweep, list[Spec]]:
        """The sweep of cells that run together, and what they are."""
        return self._owner[together[0].cell][0], [self._owner[piece.cell][1] for piece in together]

    def listing(self, minutes: float | None, cells: bool) -> str:
        """Order and remaining cost, as text; with `cells`, a line each."""
        pieces = [piece for together in self.order for piece in together]
        scale, studies = self.sweeps[0].scale, len({piece.labels[0] for piece in pieces})
        about = f"about {_duration(pieces)} on {machine()}" if pieces else "nothing to run"
        n_lanes = sum(cost.lanes for cost in self.costs.values())
        found = f"{len(pieces)} cells of {studies} studies, {n_lanes} lanes to run"
        lines = [f"campaign at scale {scale}: {found}; {about}"]
        for number, together in enumerate(self.order, start=1):
            asked, specs = self.owner(together)
            n_lanes = sum(self.costs[piece.cell].lanes for piece in together)
            found = f"{len(together)} cells, {n_lanes} lanes, about {_duration(together)}"
            lines.append(f"{number:3} {_name(together)}: {found}; {self.claims[asked.name]} claims")
            large = [minutes is not None and piece.cost > 30 * minutes for piece in together]
            if cells:
                notes = [", more than half of the budget" if over else "" for over in large]
                for line, piece, note in zip(listed(specs, self.costs), together, notes, strict=True):
                    lines.append(f"  {line}, about {_duration([piece])}{note}")
            elif any(large):
                lines.append(f"    {sum(large)} of these cells take more than half of the budget each")
        return "\n".join([*lines, *(f"skipped: {reason}" for reason in self.skipped)])

    def run(self, minutes: float | None, start: float) -> int:
        """Run the cells in their order until the budget, which counts from `start`, is used; the status."""
        for asked in self.sweeps:
            specs = [spec for spec in asked.specs if spec.cell in self.costs or not asked.handle(spec).missing]
            if specs:
                with refusing(asked.folder):
                    asked.ask(specs)
        code = 1 if self.skipped else 0
        for together in self.order:
            asked, specs = self.owner(together)
            left = None if minutes is None else max(minutes - (time.monotonic() - start) / 60, 0.0)
            within = dataclasses.replace(asked, execution=dataclasses.replace(asked.execution, max_minutes=left))
            print(f"{_name(together)}: {len(together)} cells", flush=True)
            status = within.run(specs, self.costs, self.datasets)
            if status == 130:
                return 130
            code = max(code, status)
        return code


def _evidence(asked: Sweep) -> bool:
    """Whether all cells of it on some data set are finished, of those asked for at this scale."""
    finished: dict[tuple[str, str], bool] = {}
    for cell, entry in manifest.asked(asked.folder, asked.scale).items():
        missing = Cell(asked.folder / cell, entry["lanes"]).missing
        for name, lane in entry["lanes"].items():
            at = entry["labels"]["data"], lane["variant"]
            finished[at] = finished.get(at, True) and name not in missing
    return any(finished.values())


def _name(together: Sequence[Piece]) -> str:
    return " ".join(part for part in together[0].labels if part)


def _duration(pieces: Iterable[Piece]) -> str:
    return duration(sum(piece.cost for piece in pieces))


def main(arguments: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m pcexp campaign",
        usage="python -m pcexp campaign execution.max_minutes=N [NAME ...] [KEY=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="NAME or KEY=VALUE", help="studies; settings for all of them")
    words = parser.parse_args(arguments).words
    names, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if not any(word.startswith("scale=") for word in overrides):
        overrides.append("scale=thesis")
    speak()
    datasets = Datasets()
    sweeps, skipped = composed(names, overrides, datasets)
    minutes, dry_run = sweeps[0].execution.max_minutes, sweeps[0].dry_run
    with refusing(sweeps[0].folder):
        campaign = Campaign(sweeps, skipped, datasets)
    print(campaign.listing(minutes, cells=dry_run), flush=True)
    if dry_run:
        return
    code = campaign.run(minutes, start)
    if code == 130:
        with refusing(sweeps[0].folder):
            print(Campaign(sweeps, skipped, datasets).listing(minutes, cells=False))
    sys.exit(code)


if __name__ == "__main__":
    main()
