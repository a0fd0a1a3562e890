"""Origin Hessian: what is measured is what numpy finds by other ways, rows keep all of it, and claims say what numbers say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import quick

from pcexp.energy import loss
from pcexp.experiments import origin_hessian
from pcexp.experiments.origin_hessian import claims, measured
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import Standard
from pcexp.records.tables import Records, _wide
from pcexp.theory.equilibrated import equilibrated_energy
from pcexp.theory.hessian import hessian
from pcexp.theory.saddles import zero_rank

BATCH = 4


def net(d_in: int, width: int, n_hidden: int) -> Network:
    built = FullyConnected(width, n_hidden, "linear").build(Standard(), (d_in,), 2, key=jax.random.key(1))
    return jax.tree.map(lambda w: w.astype(float), built)


def batch(d_in: int) -> tuple[jax.Array, jax.Array]:
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.normal(size=(d_in, BATCH))), jnp.asarray(draw.normal(size=(2, BATCH)) + 1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kept", [[], [1]])
def test_in_a_basis_of_the_inputs_the_spectra_are_those_of_the_whole_net_but_for_zeros(kept: list[int]) -> None:
    network, (x, y) = net(9, 2, 2), batch(9)
    # W_1 is zero at neither: any point with inputs that the batch does not span.
    point = network if kept else zero_rank(network)
    reduced, inputs = measured.seen(point, x)
    assert reduced.segments[0].weight.shape == (1, 2, BATCH) and inputs.shape == (BATCH, BATCH)
    for objective in (loss, equilibrated_energy):
        whole = np.linalg.eigvalsh(jax.jit(lambda n, f=objective: hessian(lambda m: f(m, x, y), n))(point))
        part = np.asarray(jax.jit(lambda n, f=objective: hessian(lambda m: f(m, inputs, y), n))(reduced))
        np.testing.assert_allclose(measured.spectrum(part, len(whole)), whole, atol=1e-12)
    assert float(measured.outside(point, x, y, key=jax.random.key(0))) < 1e-12


@pytest.mark.usefixtures("x64")
def test_with_fewer_inputs_than_examples_nothing_is_reduced() -> None:
    network, (x, y) = net(3, 2, 1), batch(3)
    assert measured.seen(network, x) == (network, x)
    assert float(measured.outside(network, x, y, key=jax.random.key(0))) == 0


def test_a_spectrum_has_the_eigenvalues_of_the_matrix_and_a_zero_for_every_row_outside() -> None:
    draw = np.random.default_rng(0).normal(size=(6, 6))
    h = draw + draw.T
    h[[1, 4]] = h[:, [1, 4]] = 0
    np.testing.assert_allclose(measured.spectrum(h, 9), np.sort([*np.linalg.eigvalsh(h), 0, 0, 0]), atol=1e-12)


def test_theorem_3_2_is_the_spectrum_of_minus_sigma_yy_times_the_identity() -> None:
    y = np.random.default_rng(0).normal(size=(3, 7))
    h = np.zeros((20, 20))
    h[-12:, -12:] = -np.kron(y @ y.T / 7, np.eye(4))
    np.testing.assert_allclose(measured.theorem_3_2(y, 4, 20), np.linalg.eigvalsh(h), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_unrolled_energy_is_that_of_steps_by_hand() -> None:
    network, (x, y) = net(3, 2, 1), batch(3)
    w1, w2 = (np.asarray(segment.weight[0]) for segment in network.segments)
    x_, y_ = np.asarray(x), np.asarray(y)
    z = w1 @ x_
    for _ in range(7):
        z = z - 0.1 * ((z - w1 @ x_) - w2.T @ (y_ - w2 @ z))
    expected = (np.sum((z - w1 @ x_) ** 2) + np.sum((y_ - w2 @ z) ** 2)) / (2 * BATCH)
    assert float(measured.unrolled_energy(network, x, y, activity_lr=0.1, steps=7)) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("size", [2, 59, 60, 61, 72, 500])
def test_rows_keep_spectra_and_matrices_whole_in_at_most_as_many_rows_as_are_committed(size: int) -> None:
    draw = np.random.default_rng(size)
    spectra = {"theory_loss": draw.normal(size=size), "numeric_equilibrated": draw.normal(size=size)}
    matrices = {"numeric": draw.normal(size=(size, size))} if size < 80 else {}
    rows = list(claims.in_rows({"size": size, "loss_change": np.arange(9.0)}, spectra, matrices))
    assert len(rows) <= claims.MOST_ROWS
    other = {"cell": "b", "lane": "0", "iteration": 0, **{f"theory_loss_{i}": 0.0 for i in range(1, 99)}}  # a wider one
    plain = [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in r.items()} for r in rows
    ]
    table = pl.DataFrame([{"cell": "a", "lane": "0"} | _wide(row) for row in plain] + [other], infer_schema_length=None)
    found = claims.found(
        Records("x", "small", pl.DataFrame(), table, pl.DataFrame()), {"cell": "a", "lane": "0", "size": size}
    )
    for name, values in spectra.items():
        np.testing.assert_array_equal(found[name], values)
    assert {name for name in found if name.startswith("hessian_")} == {f"hessian_{name}" for name in matrices}
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(found[f"hessian_{name}"], matrix)
    np.testing.assert_array_equal(found["loss_change"], np.arange(9.0))


def test_toy_data_have_the_dimension_and_the_second_target_that_the_grid_says() -> None:
    found = quick.swept("+experiment=origin_hessian", "scale=thesis")
    data = [spec.science["data"] for spec in found]
    assert [(d["d_in"], d["second_target"]) for d in data] == [
        (2, "minus_x"), (2, "minus_x"), (3, "minus_x"), (3, "x"), (3, "independent"),
        *4 * [(1, "minus_x")], *2 * [(3, "minus_x")],
    ]  # fmt: skip


# Claims


def made_up(**changes: Any) -> Records:
    """Runs as theory says; `changes` are columns of the first run of seed 1."""
    nets = [("origin", h, 4) for h in (1, 2, 4)] + [("chain", 5, 1), ("saddle", 3, 4), ("saddle", 4, 4)]
    found = [
        {
            "data": "gaussian", "variant": "", "blocks": arm, "config.study.saddle": arm == "saddle", "cell": f"{arm}{h}", "lane": str(seed), "seed": seed,
            "outcome": "done", "config.network.n_hidden": h, "config.network.width": n, "size": 20.0,
            "closed_loss_difference": 1e-15, "closed_equilibrated_difference": 1e-15, "outside": 0.0,
            "spectrum_loss_difference": 1e-15, "spectrum_equilibrated_difference": 1e-15, "theorem_difference": 1e-15,
            "unrolled_50_block_difference": 1e-15, "unrolled_60_relative": 3e-6, "gradient": 0.0,
            "form": -2.0, "form_numeric": -2.0, "loss_order": h + (arm != "saddle"), "equilibrated_order": 2.0,
            "numeric_loss_lowest": -1.0 if h == 1 else 0.0, "numeric_loss_highest": 1.0 if h == 1 else 0.0,
            "numeric_equilibrated_lowest": -2.0,
        }
        for arm, h, n in nets for seed in (0, 1)
    ]  # fmt: skip
    asked = pl.DataFrame(found)
    at = changes.pop("at", ("origin", 2))
    for run in found:
        if run["seed"] == 1 and (run["blocks"], run["config.network.n_hidden"]) == at:
            run |= changes
    return Records("origin_hessian", "small", pl.DataFrame(found, infer_schema_length=None), pl.DataFrame(), asked)


def statuses(**changes: Any) -> dict[str, str]:
    records = made_up(**changes)
    return {f"{claim.figure} {claim.statement}": claim.rule(records).status for claim in origin_hessian.CLAIMS}


def test_numbers_as_theory_says_reproduce_every_claim() -> None:
    assert set(statuses().values()) == {"reproduced"}


@pytest.mark.parametrize(
    ("at", "changes", "refuted"),
    [
        (("origin", 2), {"closed_loss_difference": 2e-10}, ["closed form (Eqs"]),
        (("origin", 2), {"outside": 1e-8}, ["closed form (Eqs"]),
        (("chain", 5), {"spectrum_equilibrated_difference": 1e-9}, ["so are their spectra"]),
        (("origin", 1), {"unrolled_50_block_difference": 2e-6}, ["T = 50"]),
        (("origin", 1), {"unrolled_60_relative": 2e-5}, ["T = 60"]),
        (("origin", 4), {"theorem_difference": 1e-3}, ["theorem 3.2"]),
        (("origin", 1), {"theorem_difference": 1e-3}, []),  # it says nothing of H = 1
        (("origin", 4), {"numeric_equilibrated_lowest": -1e-7}, ["strict saddle of F*"]),
        (("origin", 1), {"numeric_loss_lowest": 0.0}, ["of the loss for H = 1"]),
        (("chain", 5), {"numeric_loss_highest": 1e-3}, ["and not for H > 1"]),
        (("chain", 5), {"loss_order": 5.0}, ["as d^(H+1)"]),
        (("origin", 2), {"equilibrated_order": 2.1}, ["as d^(H+1)"]),
        (("saddle", 3), {"form_numeric": -2.1}, ["H = 3: a critical point"]),
        (("saddle", 4), {"gradient": 1e-3}, ["H = 4: a critical point"]),
        (("saddle", 4), {"numeric_equilibrated_lowest": 0.0}, ["H = 4: the saddle of rank zero is strict"]),
        (("saddle", 3), {"numeric_loss_lowest": -1e-3}, ["H = 3: the Hessian of the loss is null"]),
        (("saddle", 3), {"closed_equilibrated_difference": 1e-3}, ["H = 3: closed forms"]),
        (("saddle", 4), {"loss_order": 5.0}, ["as d^H and"]),
    ],
)
def test_one_run_that_differs_refutes_the_claim_that_it_is_of(
    at: Any, changes: dict[str, float], refuted: list[str]
) -> None:
    found = [name for name, status in statuses(at=at, **changes).items() if status == "not_reproduced"]
    assert len(found) == len(refuted) and all(part in name for part, name in zip(refuted, found, strict=True))


def test_a_run_without_numbers_leaves_the_claims_of_its_point_open() -> None:
    found = statuses(outcome="failed: no memory")
    assert {name for name, status in found.items() if status == "insufficient"} == {
        name for name in found if not name.startswith("B.") and "from the saddle" not in name
    }
