"""Equilibrated energy: the rule is PC's, two trainings share their batches, and numbers beyond a threshold refute its claim."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import quick

from pcexp.config.spec import SpecError, lane_values
from pcexp.energy import Batch
from pcexp.experiments import equilibrated_energy
from pcexp.experiments.equilibrated_energy import PCBesideTheory
from pcexp.inference import ODE, AbstractInference, ErrorDescent
from pcexp.learning import PC, WeightGradient
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import Standard
from pcexp.records.tables import Records, read_outputs
from pcexp.report.claims import Verdict
from pcexp.run import sweep

BASE = ("+experiment=equilibrated_energy", "scale=smoke")
HORIZON, ARM = "learning.inference.horizon", "config.study.arm"


# The rule


def linear() -> tuple[Network, Any, Any]:
    network = FullyConnected(width=6, n_hidden=3, activation="linear").build(Standard(), (5,), 3, key=jax.random.key(1))
    network = jax.tree.map(lambda w: w.astype(float), network)
    draw = np.random.default_rng(2)
    return network, draw.standard_normal((5, 7)), draw.standard_normal((3, 7))


@eqx.filter_jit
def gradient(rule: Any, network: Network, x: Any, y: Any) -> WeightGradient:
    return rule.gradient(network, Batch(jnp.asarray(x), jnp.asarray(y)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", [ErrorDescent(100, tol=1e-12), ODE(0.5, 100, step_size=0.01)])
def test_its_gradient_is_that_of_pc_and_what_stands_beside_it_is_theorem_3_1(solver: AbstractInference) -> None:
    network, x, y = linear()
    found, pc = (gradient(rule(solver, "batch_sum"), network, x, y) for rule in (PCBesideTheory, PC))
    for ours, theirs in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(pc.gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)

    ws = [np.asarray(w) for segment in network.segments for w in segment.weight]
    maps = [np.linalg.multi_dot([*ws[:i:-1], np.eye(6)]) for i in range(len(ws) - 1)]  # d yhat / d z_l
    s = np.eye(3) + sum(g @ g.T for g in maps)
    r = y - np.linalg.multi_dot(ws[::-1]) @ x
    theory = np.sum(r * np.linalg.solve(s, r)) / (2 * 7)
    assert float(found.diagnostics["equilibrated_energy"]) == pytest.approx(theory, rel=1e-12)

    seen = {name: float(value) for name, value in found.diagnostics.items()}
    start = np.sum(r**2) / (2 * 7)
    if isinstance(solver, ErrorDescent):
        assert seen["energy"] == pytest.approx(theory, rel=1e-12) and seen["gradient_error"] < 1e-9
        assert seen["residual"] < 1e-11
    else:
        assert theory < seen["energy"] < start and seen["gradient_error"] > 0.01


def test_a_network_that_is_not_linear_is_refused() -> None:
    network = FullyConnected(width=6, n_hidden=2, activation="tanh").build(Standard(), (5,), 3, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"network\.activation=linear"):
        PCBesideTheory(ErrorDescent(3), "batch_mean").check(network)


# The runs


def test_published_cells_are_swept_over_horizons_and_those_that_converge_have_none() -> None:
    jobs: dict[tuple[str, int, str], list[dict[str, float | int]]] = {}
    for cell in quick.composer(base=("+experiment=equilibrated_energy", "scale=thesis")).asked().cells:
        config = cell.config
        job = (config["protocol"]["name"], config["network"]["n_hidden"], config["study"]["arm"])
        jobs[job] = jobs.get(job, []) + [lane for lane in lane_values(config) if lane not in jobs.get(job, [])]
    horizons = {job: sorted({32 * lane[HORIZON] for lane in lanes if HORIZON in lane}) for job, lanes in jobs.items()}
    assert horizons["published", 10, "energy"] == [10, 20, 50, 100, 200, 300]
    assert horizons["published", 5, "energy"] == horizons["published", 10, "beside"] == [300]
    assert all(not found for (protocol, _, _), found in horizons.items() if protocol == "corrected")
    assert {len(lanes) for (protocol, _, _), lanes in jobs.items() if protocol == "corrected"} == {3}


def test_a_lane_key_that_neither_the_chosen_inference_nor_the_rules_own_has_is_refused() -> None:
    config = quick.composed(
        "learning=pc_equilibrium", "inference=ode", base=("+experiment=saddle_escape", "scale=smoke")
    )
    with pytest.raises(SpecError, match="horizn is no key"):
        lane_values(config | {"lanes": {"inference.horizn": [1.0]}})
    assert lane_values(config | {"lanes": {"inference.horizon": [1.0]}}) == [{"seed": 0}]


def test_the_training_that_has_one_beside_it_is_the_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_report", lambda *_: None)
    chosen = ["protocol=corrected", "network.n_hidden=3", "optimiser=adam"]
    chosen.append("training.max_iterations=6")
    assert quick.run_all([quick.composed(*chosen, f"study.arm={arm}", base=BASE) for arm in ("energy", "beside")]) == 0
    records = read_outputs(tmp_path / "outputs", "equilibrated_energy", "smoke")
    rows = {
        arm: records.select({"config.study.arm": arm})
        .rows.sort("iteration")
        .filter(pl.col("equilibrated_energy").is_not_null())
        for arm in ("energy", "beside")
    }
    assert len(rows["energy"]) == len(rows["beside"]) == 6
    for column in ("loss", "equilibrated_energy"):
        np.testing.assert_array_equal(rows["energy"][column], rows["beside"][column])
    assert rows["energy"]["loss"].n_unique() == 6
    assert (records.select({"config.study.arm": "beside"}).runs["largest_difference"] < 1e-9).all()


# The claims

Change = Callable[[dict[str, Any]], dict[str, Any]]


def as_expected(run: dict[str, Any]) -> dict[str, Any]:
    """Numbers that every claim holds for."""
    published, depth = run["protocol"] == "published", run["config.network.n_hidden"]
    if run["config.study.arm"] == "beside":
        apart = {2: 1e-3, 5: 0.05, 10: 0.3}[depth] if published else 1e-10
        return {"largest_difference": apart, "last_difference": apart, "largest_drift": apart}
    horizon = run[HORIZON] or 1e9
    gap = 2e-4 if depth == 2 else 0.05 / horizon
    accuracy = 0.8 - 0.05 / horizon + 0.001 * run["seed"]
    return {
        "largest_gap": 2 * gap if published else 1e-12, "mean_gap": gap, "largest_residual": 1e-3 if published else 1e-11,
        "test_accuracy": accuracy,
    }  # fmt: skip


def records(*changes: Change, leave_out: Callable[[dict[str, Any]], bool] = lambda run: False) -> Records:
    """Runs of all arms, two seeds; each change is applied to every run."""
    runs = []
    for protocol in ("published", "corrected"):
        for part, optimiser in (("energy", "adam"), ("energy", "sgd"), ("beside", "adam")):
            for depth in (2, 5, 10):
                many = protocol == "published" and (part, optimiser, depth) == ("energy", "adam", 10)
                horizons = [9.375, 3.125, 0.3125] if many else [9.375 if protocol == "published" else None]
                runs += [
                    {"cell": f"{protocol}{part}{optimiser}{depth}", "lane": f"{horizon} {seed}", "data": "mnist",
                     "variant": "", "protocol": protocol, "config.study.arm": part, "optimiser": optimiser, "seed": seed,
                     HORIZON: horizon, "config.network.n_hidden": depth, "config.training.batch_size": 64,
                     "outcome": "done"}
                    for horizon in horizons for seed in (0, 1)
                ]  # fmt: skip
    asked = pl.DataFrame(runs, infer_schema_length=None)
    for change in (as_expected, *changes):
        runs = [run | change(run) for run in runs]
    table = pl.DataFrame([run for run in runs if not leave_out(run)], infer_schema_length=None)
    return Records("equilibrated_energy", "thesis", table, pl.DataFrame(), asked)


def verdicts(found: Records) -> dict[str, Verdict]:
    return {claim.statement: claim.rule(found) for claim in equilibrated_energy.CLAIMS}


def where(change: dict[str, Any], **of: Any) -> Change:
    """A change of the runs with these columns."""

    def applied(run: dict[str, Any]) -> dict[str, Any]:
        here = run["seed"] == 1 and all(run.get(key) == value for key, value in of.items())
        return change if here else {}

    return applied


def test_what_is_expected_reproduces_every_claim() -> None:
    found = verdicts(records())
    assert {statement for statement, v in found.items() if v.status != "reproduced"} == set()
    assert found["published: accuracy rises with the horizon"].n == 6


DEPTH = "config.network.n_hidden"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (where({"largest_gap": 2e-6}, protocol="corrected", **{ARM: "energy"}, optimiser="sgd"), "ends at F*"),
        (where({"largest_residual": 2e-8}, protocol="corrected", **{ARM: "energy"}), "ends at F*"),
        (where({"largest_gap": 2e-3}, protocol="published", **{ARM: "energy", DEPTH: 2}), "enough for two"),
        (where({"largest_gap": 5e-4}, protocol="published", **{ARM: "energy", DEPTH: 5}), "are not at equilibrium"),
        (where({"mean_gap": 0.2}, protocol="published", **{ARM: "energy", HORIZON: 3.125}), "nearer to F*"),
        (where({"test_accuracy": 0.82}, protocol="published", **{ARM: "energy", HORIZON: 3.125}), "accuracy rises"),
        (where({"largest_difference": 2e-6}, protocol="corrected", **{ARM: "beside"}), "is training on F*"),
        (where({"largest_drift": 2e-6}, protocol="corrected", **{ARM: "beside"}), "is training on F*"),
        (where({"last_difference": 5e-3}, protocol="published", **{ARM: "beside"}, **{DEPTH: 10}), "another way"),
        (where({"outcome": "diverged"}, protocol="corrected", **{ARM: "beside"}, **{DEPTH: 5}), "is training on F*"),
    ],
)
def test_a_number_beyond_its_threshold_refutes_its_own_claim_alone(change: Change, says: str) -> None:
    refuted = [statement for statement, v in verdicts(records(change)).items() if v.status == "not_reproduced"]
    assert len(refuted) == 1 and says in refuted[0]


def test_a_horizon_at_which_accuracy_is_half_a_point_lower_is_within_what_seeds_do() -> None:
    slightly = where({"test_accuracy": 0.8 - 0.05 / 9.375 + 0.005}, **{ARM: "energy", HORIZON: 3.125})
    assert verdicts(records(slightly))["published: accuracy rises with the horizon"].status == "reproduced"


@pytest.mark.parametrize(
    ("protocol", "part"), [("published", "energy"), ("corrected", "energy"), ("corrected", "beside")]
)
def test_a_run_that_is_missing_leaves_its_claims_open(protocol: str, part: str) -> None:
    def lost(run: dict[str, Any]) -> bool:
        return (run["protocol"], run["config.study.arm"], run["seed"], run[DEPTH]) == (protocol, part, 1, 10)

    found = verdicts(records(leave_out=lost))
    assert {v.status for v in found.values()} == {"reproduced", "insufficient"}
    assert all(protocol in statement for statement, v in found.items() if v.status == "insufficient")


def test_claims_and_figures_answer_on_no_records_at_all() -> None:
    empty = Records("equilibrated_energy", "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    assert {v.status for v in verdicts(empty).values()} == {"insufficient"}
    from pcexp.report import plotting

    for make in equilibrated_energy.FIGURES.values():
        figure = make(empty)
        assert plotting.rendered(figure, "png").startswith(b"\x89PNG")
        plotting.pyplot().close(figure)
