"""Forward pass: sizes of activities are those of the recursion by hand, and its claims say what the numbers say."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import polars as pl
import pytest
import quick

from pcexp.experiments import forward_pass
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import MuPC
from pcexp.records.tables import Records, read_outputs
from pcexp.report import rendering as report
from pcexp.report.claims import Verdict
from pcexp.run import sweep

PHI = {"linear": lambda z: z, "tanh": np.tanh, "relu": lambda z: np.maximum(z, 0)}
D, N, L, K = 5, 24, 12, 3


def mupc(activation: Any, skips: bool, width: int = N, depth: int = L) -> Network:
    architecture = FullyConnected(width, depth - 1, activation, form="pre", skips=skips)
    return architecture.build(MuPC(), (D,), K, key=jr.key(0))


@pytest.mark.parametrize("activation", PHI)
@pytest.mark.parametrize("skips", [True, False])
def test_sizes_are_those_of_the_recursion_by_hand(activation: str, skips: bool) -> None:
    network = mupc(activation, skips)
    x = np.random.default_rng(0).standard_normal((D, 7))
    weights = [np.asarray(w, np.float64) for segment in network.segments for w in segment.weight]
    a = 1 / np.sqrt(N * L if skips else N)
    z = weights[0] @ x.astype(np.float32).astype(float) / np.sqrt(D)
    wanted = [np.mean(np.abs(z))]
    for w in weights[1:-1]:
        z = a * w @ PHI[activation](z) + (z if skips else 0)
        wanted.append(np.mean(np.abs(z)))
    wanted.append(np.mean(np.abs(weights[-1] @ PHI[activation](z) / N)))
    np.testing.assert_allclose(forward_pass.sizes(network, jnp.asarray(x, jnp.float32)), wanted, rtol=1e-12)


def test_sizes_keep_their_numbers_where_float32_has_none() -> None:
    # A relu layer without skips halves the mean square: 2^-150 at L = 301 is below float32's smallest number.
    found = forward_pass.sizes(mupc("relu", False, width=64, depth=301), jnp.ones((D, 3)))
    assert np.all(found > 0) and found[-2] < 1e-38


def test_a_linear_depth_mup_network_grows_by_one_over_depth_a_layer() -> None:
    """Mean squares grow by 1 + 1/L a layer in expectation: sizes by (1 + 1/L)^((L-2)/2) over the hidden layers."""
    found = forward_pass.sizes(mupc("linear", True, width=512, depth=32), jr.normal(jr.key(1), (D, 64)))
    assert found[-2] / found[0] == pytest.approx((1 + 1 / 32) ** 15, rel=0.1)


def test_recorded_layers_are_quarters_of_the_depth_the_last_hidden_one_and_the_output() -> None:
    assert forward_pass.layers(16) == [1, 4, 8, 12, 15, 16]
    assert forward_pass.layers(512) == [1, 128, 256, 384, 511, 512]
    assert forward_pass.layers(2) == [1, 1, 1, 1, 1, 2]


# Claims


def growth(run: dict[str, Any]) -> float:
    """log10 of the growth as published: exponential in depth where it should be."""
    rate = {
        ("standard_uniform", "residual"): 0.05,
        ("standard_uniform", "pre_activation"): -0.05,
        ("standard", "residual"): 0.05,
        ("standard", "pre_activation"): -0.05,
    }.get((run["parameterisation"], run["network"]), 0.0)
    if run["parameterisation"] == "orthogonal" and run["activation"] == "relu":
        rate = -0.1
    return rate * (run["config.network.n_hidden"] - 1)


def made_up(**columns: Any) -> Records:
    """Runs at depths 16, 32 and 64 whose sizes are as published; `columns` are functions of a run that replace its own."""
    runs = [
        {"data": "digits", "variant": "", "parameterisation": p, "network": n, "activation": phi, "seed": seed,
         "config.network.n_hidden": h, "outcome": "done", "cell": f"{p}{n}{phi}{h}", "lane": str(seed)}
        for p in ("standard", "standard_uniform", "mupc", "orthogonal") for n in ("residual", "pre_activation")
        for phi in PHI for h in (15, 31, 63) for seed in (0, 1)
    ]  # fmt: skip
    asked = [{k: v for k, v in run.items() if k not in ("outcome", "config.network.n_hidden")} for run in runs]
    for run in runs:
        at = columns.get("growth", growth)(run)
        run |= {"log10_growth": at, "log10_highest": max(at, 0.0), "log10_lowest": min(at, 0.0), "log10_output": -1.5}
        run |= {name: make(run) for name, make in columns.items() if name != "growth"}
    kept = [run for run in runs if run["outcome"] != "missing"]
    return Records("forward_pass", "small", pl.DataFrame(kept), pl.DataFrame(), pl.DataFrame(asked))


def verdicts(**columns: Any) -> dict[str, Verdict]:
    records = made_up(**columns)
    return {claim.statement: claim.rule(records) for claim in forward_pass.CLAIMS}


def test_sizes_as_published_reproduce_every_claim() -> None:
    found = verdicts()
    assert {v.status for v in found.values()} == {"reproduced"}
    assert sorted(v.n for v in found.values()) == [6, 12, *(6 * [18])]  # activations x depths x seeds
    assert "relu 1.26e+03" in found["SP with skips explodes (U, as the code drew it)"].observed  # 10^(0.05 * 62)


def one(run: dict[str, Any]) -> bool:
    return run["seed"] == 1 and run["activation"] == "tanh" and run["config.network.n_hidden"] == 63


def test_one_seed_that_does_not_grow_with_depth_refutes_an_explosion() -> None:
    found = verdicts(growth=lambda run: growth({**run, "config.network.n_hidden": 31}) if one(run) else growth(run))
    refuted = {statement for statement, v in found.items() if v.status == "not_reproduced"}
    assert refuted == {statement for statement in found if statement.startswith("SP")}


@pytest.mark.parametrize(("factor", "status"), [(1.9, "reproduced"), (2.1, "not_reproduced")])
def test_flat_means_within_a_factor_of_two_upwards_and_downwards(factor: float, status: str) -> None:
    for sign in (1, -1):
        found = verdicts(growth=lambda run, s=sign: s * np.log10(factor) if one(run) else growth(run))
        assert found["Depth-muP is flat over layers, at every depth"].status == status
        assert found["orthogonal is flat for linear and tanh networks"].status == status


@pytest.mark.parametrize("outcome", ["missing", "diverged", "failed: no memory"])
def test_a_run_without_numbers_leaves_a_claim_open(outcome: str) -> None:
    found = verdicts(outcome=lambda run: outcome if one(run) else "done")
    open_claims = {statement for statement, v in found.items() if v.status == "insufficient"}
    assert open_claims == found.keys() - {"orthogonal vanishes for ReLU networks"}
    assert "3 of 18 runs missing" in found["Depth-muP is flat over layers, at every depth"].observed


# Runs


def test_a_lane_without_memory_is_a_failed_run_and_the_same_command_runs_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_report", lambda *_: None)
    cell = ["network=residual", "network.activation=linear", "network.n_hidden=7", "parameterisation=mupc"]
    base = ("+experiment=forward_pass", "scale=smoke", f"execution.outputs={tmp_path}", "lanes.seed=[0,1]")

    def run() -> tuple[int, Records]:
        return quick.run_all([quick.composed(*cell, base=base)]), read_outputs(tmp_path, "forward_pass", "smoke")

    def exhausted(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")

    with monkeypatch.context() as patch:
        patch.setattr(forward_pass, "sizes", exhausted)
        status, records = run()
    assert status == 1 and set(records.runs["outcome"]) == {"failed: RESOURCE_EXHAUSTED: no memory"}
    assert {verdict.status for _, _, verdict in report.judge(forward_pass, records)} == {"insufficient"}
    assert all(make(records) for make in forward_pass.FIGURES.values())
    status, records = run()
    assert status == 0 and list(records.runs["outcome"]) == ["done", "done"] and len(records.rows) == 2
