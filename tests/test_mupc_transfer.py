"""muPC transfer: verdicts on made-up losses are those that the definitions give."""

import math
from collections.abc import Callable

import polars as pl
import pytest

from pcexp.experiments import mupc_transfer
from pcexp.experiments.mupc_transfer import BETA, ETA
from pcexp.records.tables import Records
from pcexp.report.claims import Verdict

SIZES = [(32, 8), (64, 8), (128, 8), (64, 4), (64, 16)]
ETAS, BETAS = (0.5, 0.1), (1.0, 0.1)


def records(loss: Callable[[int, int, float, float], float], leave_out: int = 0) -> Records:
    """Runs of tanh nets, two seeds a pair that differ by a factor of four; an infinite loss is a run that diverged."""
    runs = []
    for width, n_hidden in SIZES:
        for eta in ETAS:
            for beta in BETAS:
                for seed in (0, 1):
                    value = loss(width, n_hidden, eta, beta)
                    runs.append({
                        "cell": f"{width}x{n_hidden}", "lane": f"{eta} {beta} {seed}", "data": "mnist", "variant": "",
                        "protocol": "corrected", "activation": "tanh", "seed": seed, ETA: eta, BETA: beta,
                        "config.network.width": width, "config.network.n_hidden": n_hidden,
                        "outcome": "done" if math.isfinite(value) else "diverged", "lowest_loss": value * 4**seed,
                    })  # fmt: skip
    table = pl.DataFrame(runs)
    return Records("mupc_transfer", "small", table[: len(runs) - leave_out], pl.DataFrame(), table)


def verdict(axis: str, found: Records) -> Verdict:
    statement = f"corrected, tanh: the best learning rates transfer over {axis}"
    (claim,) = (claim for claim in mupc_transfer.CLAIMS if claim.statement == statement)
    return claim.rule(found)


def at_a_fixed_pair(width: int, n_hidden: int, eta: float, beta: float) -> float:
    return (0.1 if (eta, beta) == (0.1, 1.0) else 0.2) / width


def wider_wants_less(width: int, n_hidden: int, eta: float, beta: float) -> float:
    """Best eta 0.5 at N = 32 and 0.1 above, where 0.5 costs half as much again."""
    best = 0.5 if width == 32 else 0.1
    return 0.1 * (1 if eta == best else 1.5) * (1 if beta == 1 else 2)


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_one_best_pair_for_all_sizes_is_a_transfer(axis: str) -> None:
    found = verdict(axis, records(at_a_fixed_pair))
    assert (found.status, found.n) == ("reproduced", 24)
    assert found.observed == {"width": "N=64 1, N=128 1", "depth": "H=8 1, H=16 1"}[axis]


def test_the_ratio_is_the_loss_at_the_smallest_nets_pair_over_the_own_best() -> None:
    found = verdict("width", records(wider_wants_less))
    assert (found.status, found.observed) == ("not_reproduced", "N=64 1.5, N=128 1.5")
    assert verdict("depth", records(wider_wants_less)).status == "reproduced"  # all of width 64


def test_a_pair_at_which_a_larger_net_diverges_does_not_transfer() -> None:
    def loss(width: int, n_hidden: int, eta: float, beta: float) -> float:
        return math.inf if width == 128 and (eta, beta) == (0.1, 1.0) else at_a_fixed_pair(width, n_hidden, eta, beta)

    found = verdict("width", records(loss))
    assert found.status == "not_reproduced" and "N=128 inf" in found.observed


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_a_grid_with_a_hole_decides_nothing(axis: str) -> None:
    found = verdict(axis, records(wider_wants_less, leave_out=1))
    assert found.status == "insufficient" and "1 of 40 runs missing" in found.observed
