"""Coordinate check: it measures what moved, and its slopes are those of power laws."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import polars as pl
import pytest

from pcexp.experiments import coordinate_check
from pcexp.learning import Networks
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import NTK
from pcexp.records.tables import Records
from pcexp.report.claims import Verdict

D, N, L, K = 5, 6, 5, 3


def network(seed: int) -> Network:
    return FullyConnected(N, L - 1, "tanh", form="pre", skips=True).build(NTK(), (D,), K, key=jr.key(seed))


def by_hand(network: Network, x: np.ndarray) -> list[np.ndarray]:
    weights = [np.asarray(w, np.float64) for segment in network.segments for w in segment.weight]
    z = [weights[0] @ x / np.sqrt(D)]
    for w in weights[1:-1]:
        z.append(z[-1] + w @ np.tanh(z[-1]) / np.sqrt(N * L))
    return [*z, weights[-1] @ np.tanh(z[-1]) / np.sqrt(N)]


def test_size_and_change_are_those_of_two_forward_passes_by_hand() -> None:
    start, moved = network(0), network(1)
    x = np.random.default_rng(0).standard_normal((D, 7)).astype(np.float32)
    z, z0 = by_hand(moved, x), by_hand(start, x)
    found = coordinate_check.movement(moved, start, jnp.asarray(x))
    at = [0, 1, 3, 4]  # first, second of four, fourth, output
    np.testing.assert_allclose(found["size"], [np.abs(z[i]).mean() for i in at], rtol=1e-5)
    np.testing.assert_allclose(found["change"], [np.abs(z[i] - z0[i]).mean() for i in at], rtol=1e-5)


def test_the_controls_rate_is_that_of_the_residual_branches_alone() -> None:
    net = network(0)
    gradient = Networks((eqx.filter(net, eqx.is_inexact_array),) * 2)
    rated = coordinate_check.hidden_rate(lambda: optax.sgd(0.1), (jnp.asarray(1.0), jnp.asarray(0.5)))
    updates, _ = rated.update(gradient, rated.init(gradient), gradient)
    ours, theirs = (np.concatenate([s.weight[:, 0, 0] for s in tree.stacks]) for tree in (updates, gradient))
    assert list(ours / theirs) == pytest.approx([-0.1] * 5 + [-0.1, -0.05, -0.05, -0.05, -0.1])


# Claims


def made_up(exponents: dict[str, float], **columns: Any) -> Records:
    """Runs whose changes are powers of width and depth; a column's exponent is 0 unless named."""
    runs = [
        {"data": "digits", "variant": "", "parameterisation": p, "learning": rule, "activation": phi, "seed": seed,
         "config.network.width": n, "config.network.n_hidden": h, "outcome": "done", "cell": f"{p}{rule}{phi}{n}.{h}",
         "lane": str(seed)}
        for p in ("standard", "ntk", "mupc") for rule in ("pc", "bp") for phi in ("linear", "tanh", "relu")
        for n, h in ((32, 8), (64, 8), (128, 8), (64, 4), (64, 16)) for seed in (0, 1)
    ]  # fmt: skip
    sizes = ("config.network.width", "config.network.n_hidden", "outcome")
    asked = [{k: v for k, v in run.items() if k not in sizes} for run in runs]
    for run in runs:
        size = run["config.network.width"] * (run["config.network.n_hidden"] + 1)
        for column in ("hidden_change", "output_change", "control_hidden_change", "control_output_change"):
            run[column] = 0.01 * size ** exponents.get(f"{run['parameterisation']} {column}", 0.0)
        run |= {name: make(run) for name, make in columns.items()}
    kept = [run for run in runs if run["outcome"] != "missing"]
    return Records("coordinate_check", "small", pl.DataFrame(kept), pl.DataFrame(), pl.DataFrame(asked))


def verdicts(exponents: dict[str, float], **columns: Any) -> dict[str, Verdict]:
    records = made_up(exponents, **columns)
    return {f"{claim.figure} {claim.statement}": claim.rule(records) for claim in coordinate_check.CLAIMS}


AS_THEORY = {"standard hidden_change": 1.0, "ntk output_change": 0.5, "mupc control_hidden_change": 0.05}


def test_power_laws_are_found_and_judged_on_their_own_arm_of_the_grid() -> None:
    found = verdicts(AS_THEORY)
    assert {v.status for v in found.values()} == {"reproduced"} and {v.n for v in found.values()} == {18}
    assert (
        "linear 1, tanh 1, relu 1"
        in found["depth.pc PC, SP: the change of hidden activities grows with depth"].observed
    )


def test_a_slope_of_a_half_is_not_flat_and_one_of_a_fifth_does_not_grow() -> None:
    found = verdicts(AS_THEORY | {"mupc hidden_change": 0.5, "standard hidden_change": 0.2})
    refuted = {name for name, v in found.items() if v.status == "not_reproduced"}
    assert refuted == {name for name in found if "SP:" in name or "muPC: the change of hidden" in name}


@pytest.mark.parametrize("outcome", ["missing", "failed: no memory"])
def test_a_run_that_is_missing_leaves_open_what_the_others_do_not_refute(outcome: str) -> None:
    lost = {"outcome": lambda run: outcome if run["seed"] == 1 and run["config.network.width"] == 128 else "done"}
    assert {v.status for v in verdicts(AS_THEORY, **lost).values()} == {"insufficient"}
    refuted = verdicts(AS_THEORY | {"mupc hidden_change": 0.5}, **lost)
    assert refuted["width.bp BP, muPC: the change of hidden activities is flat in width"].status == "not_reproduced"


def test_a_run_that_diverged_is_not_flat() -> None:
    found = verdicts(AS_THEORY, outcome=lambda run: "diverged" if run["config.network.width"] == 128 else "done")
    assert found["width.bp BP, muPC: the change of hidden activities is flat in width"].status == "not_reproduced"
    assert found["depth.bp BP, muPC: the change of hidden activities is flat in depth"].status == "reproduced"
    assert found["depth.bp BP, SP: the change of hidden activities grows with depth"].status == "reproduced"
