"""What is unfinished of all studies, in short slots: `python -m pcexp campaign execution.max_minutes=N [NAME ...] [KEY=VALUE ...]`.

Without names it takes every experiment, at scale=thesis unless another is given; a KEY=VALUE applies to each of them, as on
the command line of `python -m pcexp`. Each study runs on its own default data unless `data=` is given; one whose data are
missing is named and skipped. `dry_run=true` lists the order and the remaining cost, and stops. When the budget is used, what
is left is said, and the same command continues; without a budget it runs to the end.

The order. A *group* is what claims are judged on: the cells of one study, data set and variant. Its value is the number of
claims that it decides (one at least), its cost that of its unfinished lanes, and

    largest value / cost first, but a study without evidence at this scale goes before one with evidence;

a study has evidence once a group of it is finished or stands earlier in the order. In a group, cells that were begun come
first and then the cheapest, so that a slot leaves as many finished packs as it can.
"""

import argparse
import dataclasses
import difflib
import importlib
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pcexp.command_line import CONF, speak  # first: it sets what JAX reads when it is imported

# isort: split
import jax
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from pcexp.config.composition import Refused, refusal
from pcexp.config.composition import composed as compose
from pcexp.config.spec import Spec
from pcexp.data import DataError
from pcexp.records import manifest
from pcexp.records.cell import Cell
from pcexp.run.cost import Cost, describe, estimate, too_large, units
from pcexp.run.progress import duration
from pcexp.run.session import Datasets
from pcexp.run.sweep import Sweep, refusing, sweep


class Piece(NamedTuple):
    """An unfinished cell: the group that it belongs to, its name, its cost in seconds, and whether it was begun."""

    study: str
    data: str
    variant: str
    cell: str
    cost: float
    begun: bool

    @property
    def group(self) -> tuple[str, str, str]:
        """What claims are judged on."""
        return self.study, self.data, self.variant


def order(pieces: Iterable[Piece], claims: Mapping[str, int], evidence: Collection[str]) -> list[list[Piece]]:
    """Groups in the order in which they run, their cells in order too, by the rule above.

    `claims` counts those of each study; `evidence` names the studies that have some.
    """
    groups: dict[tuple[str, str, str], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.group, []).append(piece)
    value = {group: max(claims[group[0]], 1) / max(sum(p.cost for p in cells), 1e-9) for group, cells in groups.items()}
    seen, ordered = set(evidence), []
    while groups:
        best = min(groups, key=lambda group: (group[0] in seen, -value[group], group))
        seen.add(best[0])
        ordered.append(sorted(groups.pop(best), key=lambda piece: (not piece.begun, piece.cost, piece.cell)))
    return ordered


def composed(names: Sequence[str], overrides: Sequence[str]) -> tuple[dict[str, Sweep], list[str]]:
    """The sweep of each study (of all without names), and why studies were left out. Raises Refused."""
    sweeps, skipped = {}, []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        try:
            known = loader.get_group_options("experiment", config_name="config", overrides=list(overrides))
        except HydraException as error:
            raise Refused(refusal(error)) from error
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                meant = f" (did you mean {close[0]}?)" if close else ""
                raise Refused(f"there is no experiment {name}{meant}; there are {', '.join(known)}")
        for name in names or known:
            try:
                for asked, settings in compose(loader, [f"+experiment={name}", *overrides]):
                    sweeps[name] = sweep(asked, settings)
            except Refused as error:
                skipped.append(f"{name}: {str(error).removeprefix('pcexp: ')}")
    if not sweeps:
        raise Refused(skipped[0] if skipped else "there are no experiments")
    return sweeps, skipped


class Campaign:
    """The unfinished cells of several studies: their costs, their order, and running them."""

    def __init__(self, sweeps: Sequence[Sweep], skipped: Sequence[str]) -> None:
        self.sweeps, self.datasets = sweeps, Datasets()
        self.costs: dict[str, Cost] = {}
        self._owner: dict[str, tuple[Sweep, Spec]] = {}
        missing: dict[str, int] = {}
        pieces, evidence, claims = [], set(), {}
        for asked in sweeps:
            claims[asked.name] = len(
                getattr(importlib.import_module(type(asked.specs[0].study).__module__), "CLAIMS", ())
            )
            if _evidence(asked):
                evidence.add(asked.name)
            for spec in asked.specs:
                handle = asked.handle(spec)
                if spec.cell in self._owner or not (lanes := len(handle.missing)):
                    continue
                try:
                    cost = estimate(spec, self.datasets, lanes, asked.execution.workers)
                    if excess := too_large([spec], {spec.cell: cost}):
                        raise ValueError(excess)
                except (DataError, ValueError) as error:
                    missing[f"{asked.name}: {error}"] = missing.get(f"{asked.name}: {error}", 0) + 1
                    continue
                self.costs[spec.cell], self._owner[spec.cell] = cost, (asked, spec)
                begun = any(handle.checkpoint("*").parent.glob("*.npz"))
                variant = next((lane.variant for lane in spec.lanes if lane.name in handle.missing), "")
                pieces.append(Piece(asked.name, spec.labels["data"], variant, spec.cell, cost.seconds, begun))
        self.skipped = [*skipped, *(f"{reason} ({n} cells)" for reason, n in missing.items())]
        self.claims, self.groups = claims, order(pieces, claims, evidence)

    def owner(self, group: Sequence[Piece]) -> tuple[Sweep, list[Spec]]:
        """The sweep that a group belongs to, and its cells."""
        return self._owner[group[0].cell][0], [self._owner[piece.cell][1] for piece in group]

    def listing(self, minutes: float | None, listed: bool) -> str:
        """Order and remaining cost, as text; with `listed`, a line a cell."""
        pieces = [piece for group in self.groups for piece in group]
        lanes = sum(self.costs[piece.cell].lanes for piece in pieces)
        scale, studies = self.sweeps[0].scale, len({piece.study for piece in pieces})
        about = (
            f"about {_duration(pieces)} on {units()} {jax.default_backend()} unit(s)" if pieces else "nothing to run"
        )
        lines = [f"campaign at scale {scale}: {len(pieces)} cells of {studies} studies, {lanes} lanes to run; {about}"]
        for number, group in enumerate(self.groups, start=1):
            asked, specs = self.owner(group)
            lanes = sum(self.costs[piece.cell].lanes for piece in group)
            name = " ".join(part for part in group[0].group if part)
            lines.append(
                f"{number:3} {name}: {len(group)} cells, {lanes} lanes, about {_duration(group)}; "
                f"{self.claims[asked.name]} claims"
            )
            large = [minutes is not None and _seconds([piece]) > 30 * minutes for piece in group]
            cells = describe(specs, self.costs, asked.folder, scale, listed=True).splitlines()[1:] if listed else ()
            for line, piece, over in zip(cells, group, large, strict=True) if listed else ():
                note = ", more than half of the budget" if over else ""
                lines.append(f"  {line}, about {_duration([piece])}{note}")
            if any(large) and not listed:
                lines.append(f"    {sum(large)} of these cells take more than half of the budget each")
        return "\n".join([*lines, *(f"skipped: {reason}" for reason in self.skipped)])

    def run(self, minutes: float | None, start: float) -> int:
        """Run the groups in their order until the budget, which counts from `start`, is used; the status."""
        for asked in self.sweeps:
            specs = [spec for spec in asked.specs if spec.cell in self.costs or not asked.handle(spec).missing]
            if specs:
                with refusing(asked.folder):
                    asked.ask(specs)
        code = 1 if self.skipped else 0
        for group in self.groups:
            asked, specs = self.owner(group)
            left = None if minutes is None else minutes - (time.monotonic() - start) / 60
            within = dataclasses.replace(asked, execution=dataclasses.replace(asked.execution, max_minutes=left))
            print(f"{' '.join(part for part in group[0].group if part)}: {len(group)} cells", flush=True)
            status = within.run(specs, self.costs, self.datasets)
            if status == 130:
                return 130
            code = max(code, status)
        return code


def _evidence(asked: Sweep) -> bool:
    """Whether a group that was asked for at this scale is finished."""
    groups: dict[tuple[str, str], bool] = {}
    for cell, entry in manifest.asked(asked.folder, asked.scale).items():
        missing = Cell(asked.folder / cell, entry["lanes"]).missing
        for name, lane in entry["lanes"].items():
            group = entry["labels"]["data"], lane["variant"]
            groups[group] = groups.get(group, True) and name not in missing
    return any(groups.values())


def _seconds(pieces: Iterable[Piece]) -> float:
    return sum(piece.cost for piece in pieces)


def _duration(pieces: Iterable[Piece]) -> str:
    return duration(_seconds(pieces))


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point of `python -m pcexp campaign`."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m pcexp campaign",
        usage="python -m pcexp campaign execution.max_minutes=N [NAME ...] [KEY=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="NAME or KEY=VALUE", help="studies; settings for all of them")
    words = parser.parse_args(None if arguments is None else list(arguments)).words
    names, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if not any(word.startswith("scale=") for word in overrides):
        overrides.append("scale=thesis")
    speak()
    sweeps, skipped = composed(names, overrides)
    settings = list(sweeps.values())
    minutes = settings[0].execution.max_minutes
    with refusing(settings[0].folder):
        campaign = Campaign(settings, skipped)
    print(campaign.listing(minutes, listed=settings[0].dry_run), flush=True)
    if settings[0].dry_run:
        return
    code = campaign.run(minutes, start)
    if code == 130:
        with refusing(settings[0].folder):
            print(Campaign(settings, skipped).listing(minutes, listed=False))
    sys.exit(code)


if __name__ == "__main__":
    main()
