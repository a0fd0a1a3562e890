"""Strict saddles: starts are what Achour et al. say, critical points those of closed forms, and claims count what was found."""

from typing import Any

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from pcexp.energy import loss
from pcexp.experiments import strict_saddles
from pcexp.experiments.strict_saddles import edges, search
from pcexp.experiments.strict_saddles.claims import points_of
from pcexp.experiments.strict_saddles.starts import FULL_RANK, KINDS, Batch, Start, batch, saddle
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import MuPC, Standard
from pcexp.records.tables import Records
from pcexp.report.claims import Verdict
from pcexp.theory.equilibrated import equilibrated_energy
from pcexp.theory.hessian import hessian, vectorised

pytestmark = pytest.mark.usefixtures("x64")

D, K = 4, 3


def drawn(kind: Any = "realisable") -> Batch:
    return batch(kind, np.random.default_rng(3).normal(size=(16, D)).astype(np.float32), 0)


def network(
    n_hidden: int, width: int, *, d_in: int = D, d_out: int = K, skips: bool = False, mupc: bool = False
) -> Network:
    architecture = FullyConnected(width, n_hidden, "linear", "pre", skips=skips, segment_size=1)
    return architecture.build(MuPC() if mupc else Standard(), (d_in,), d_out, key=jax.random.key(0))


def stacked(*networks: Network) -> Network:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


def at(point: search.Measured, i: int = 0) -> search.Measured:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], point)


# Data and starts


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_have_the_signal_the_noise_and_the_rank_of_their_kind(kind: Any) -> None:
    data, (signal, noise, _, lacking) = drawn(kind), KINDS[kind]
    xx, xy, yy = (a @ b.T / 16 for a, b in ((data.x, data.x), (data.x, data.y), (data.y, data.y)))
    explained = xy.T @ np.linalg.pinv(xx) @ xy
    np.testing.assert_allclose(np.linalg.eigvalsh(explained)[::-1], sorted(signal, reverse=True), atol=1e-12)
    np.testing.assert_allclose(explained @ data.directions, data.directions * signal, atol=1e-12)
    np.testing.assert_allclose(np.trace(yy), sum(signal) + sum(noise), rtol=1e-12)
    ranks = [np.linalg.matrix_rank(m, tol=1e-8) for m in (xx, xy, yy)]
    assert ranks[0] == D - lacking
    assert (kind in FULL_RANK) == (ranks == [D, K, K])


def test_too_few_inputs_are_refused_with_the_keys_to_change() -> None:
    with pytest.raises(ValueError, match=r"kind=realisable with 5 inputs of dimension 4: choose data\.d_in"):
        batch("realisable", np.ones((5, D)), 0)


@pytest.mark.parametrize("n_hidden", [1, 3])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("n_zero", [2, 3])
def test_starts_of_achours_form_are_critical_points_of_the_loss_of_their_rank(
    n_hidden: int, skips: bool, n_zero: int
) -> None:
    data, generator = drawn("noisy"), np.random.default_rng(0)
    scales = by_hand.premultipliers("MuPC", D, 5, n_hidden + 1, skips)
    ranks = set()
    for _ in range(8):
        maps, rank = saddle(data, 5, n_hidden, n_zero, generator)
        net = search.with_maps(network(n_hidden, 5, skips=skips, mupc=True), maps)
        layers = by_hand.layers(net, activation="linear", form="pre", skips=skips, scales=scales)
        for weight, _ in by_hand.loss_gradient(layers, data.x, data.y):
            np.testing.assert_allclose(weight, 0, atol=1e-11)
        product = np.linalg.multi_dot(maps[::-1])
        assert np.linalg.matrix_rank(product, tol=1e-8) == rank
        ranks.add(rank)
    assert len(ranks) > 2


def test_of_tightened_saddles_the_loss_has_no_negative_curvature_and_of_others_it_has() -> None:
    """Achour et al. (2022): with the leading eigenvectors and below full rank. Blocks of W_1, W_2, W_4 here, and of W_1, W_2."""
    data, lowest = drawn("realisable"), {}
    width, rank, generator = 4, 1, np.random.default_rng(1)
    u = data.directions
    for zero in ((0, 1, 3), (0, 1)):
        z = [
            generator.standard_normal(shape) * (i not in zero)
            for i, shape in enumerate([(3, D), (3, 3), (3, 3), (2, 3)])
        ]
        middle = [np.block([[np.eye(rank), np.zeros((1, 3))], [np.zeros((3, 1)), block]]) for block in z[1:-1]]
        maps = [np.vstack([u[:, :1].T @ data.regression, z[0]]), *middle, np.hstack([u[:, :1], u[:, 1:] @ z[-1]])]
        net = search.with_maps(network(3, width), maps)
        h = hessian(lambda n: loss(n, jnp.asarray(data.x), jnp.asarray(data.y)), net)
        lowest[len(zero)] = float(np.linalg.eigvalsh(h)[0])
    assert lowest[3] > -1e-12 and lowest[2] < -1e-2


# The search


def test_the_polish_reaches_the_origin_of_a_chain_and_its_curvature_is_that_of_theorem_a_1() -> None:
    x = np.random.default_rng(0).normal(size=(1, 8))
    y = -0.7 * x
    xy, yy = float(np.mean(x * y)), float(np.mean(y * y))
    start = search.with_matrices(network(1, 1, d_in=1, d_out=1), [[[0.1]], [[0.05]]])
    ended, steps = search.polished(stacked(start), jnp.asarray(x), jnp.asarray(y), 100)
    found = at(search.points(ended, jnp.asarray(x), jnp.asarray(y)))
    assert found.gradient < 1e-13 and found.size < 1e-12 and 0 < steps[0] < 30
    np.testing.assert_allclose(found.lambda_min, (-yy - np.sqrt(yy**2 + 4 * xy**2)) / 2, rtol=1e-10)
    np.testing.assert_allclose(found.energy, yy / 2, rtol=1e-12)


@pytest.mark.parametrize("skips", [False, True])
def test_f_is_constant_along_rotations_of_hidden_units_and_the_tangents_are_theirs(skips: bool) -> None:
    net, data = network(3, 3, skips=skips, mupc=True), drawn("noisy")
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    tangents = np.asarray(search.rotations(net))[1:]
    assert len(tangents) == (3 if skips else 9)

    def turn(t: Any) -> jax.Array:
        c, s = jnp.cos(t), jnp.sin(t)
        return jnp.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])

    def turned(t: Any) -> Network:
        w, o = search.matrices(net), turn(t)
        return search.with_matrices(
            net, [o @ w[0], o @ w[1] @ o.T, o @ w[2] @ o.T, w[3] @ o.T] if skips else [o @ w[0], w[1] @ o.T, w[2], w[3]]
        )

    np.testing.assert_allclose(equilibrated_energy(turned(0.8), x, y), equilibrated_energy(net, x, y), rtol=1e-12)
    velocity = jax.jacfwd(lambda t: vectorised(turned(t))[0])(0.0)
    np.testing.assert_allclose(-tangents[0], velocity, atol=1e-12)


def bottleneck(omega: float) -> tuple[Network, Batch]:
    """y_1 = sqrt(2) x_1, y_2 = x_2 + noise of variance 3 through one hidden unit, fitted to y_1 with W_L = (omega, 0)."""
    white = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 3)))[0].T * 3
    x, y = white[:2], np.stack([np.sqrt(2) * white[0], white[1] + np.sqrt(3) * white[2]])
    net = search.with_matrices(network(1, 1, d_in=2, d_out=2), [[[np.sqrt(2) / omega, 0]], [[omega], [0]]])
    return net, Batch(x, y, np.eye(2), np.array([2.0, 1.0]))


@pytest.mark.parametrize("omega", [0.5, 1.5])
def test_a_bottleneck_that_ignores_noise_is_critical_with_the_curvature_of_the_closed_form(omega: float) -> None:
    """W_L's second entry e, W_1's second entry d: curvatures a^2/w^2 - (b^2 + s)/(1 + w^2) and w^2/(1 + w^2), coupled by -b/(1 + w^2)."""
    net, data = bottleneck(omega)
    found = at(search.points(stacked(net), jnp.asarray(data.x), jnp.asarray(data.y)))
    c = 1 + omega**2
    block = np.array([[2 / omega**2 - 4 / c, -1 / c], [-1 / c, omega**2 / c]])
    h = hessian(lambda n: equilibrated_energy(n, jnp.asarray(data.x), jnp.asarray(data.y)), net)
    np.testing.assert_allclose(np.asarray(h)[np.ix_([3, 1], [3, 1])], block, atol=1e-12)
    assert found.gradient < 1e-14 and abs(found.lambda_min - min(0, np.linalg.eigvalsh(block)[0])) < 1e-12
    assert (
        abs(found.loss - found.energy) < 1e-14
        and data.infimum(1) == pytest.approx(1)
        and found.energy == pytest.approx(2)
    )
    down = float(
        search.descents(stacked(net), jnp.asarray(data.x), jnp.asarray(data.y), jax.random.split(jax.random.key(0), 1))[
            0
        ]
    )
    assert (down > 0.5) if omega > 1 else (abs(down) < 1e-12)


def test_between_its_local_minima_and_strict_saddles_f_has_a_saddle_that_is_not_strict() -> None:
    """det of the block is (a^2 - b^2 + w^2 (a^2 - b^2 - s)) / (1 + w^2)^2: zero at w^2 = 1/2, all covariances of full rank."""
    net, data = bottleneck(0.5)
    rows = edges(stacked(net, net), np.array([1]), [{"start_rank": 1}] * 2, data, jax.random.key(0))
    assert len(rows) == 1
    (row,) = rows
    assert row["output"] == pytest.approx(np.sqrt(0.5), abs=1e-9)
    assert row["gradient"] < 1e-12 and abs(row["lambda_min"]) < 1e-10 and row["excess"] == pytest.approx(1)
    assert row["descent"] > 0.5 and row["start"] == Start.EDGE


def test_levels_are_half_of_what_some_eigenvalues_leave_of_the_trace() -> None:
    _, data = bottleneck(1.0)  # Sigma_yy has the eigenvalues 2 and 4
    found = strict_saddles.level_errors(np.array([0.0, 1.0, 2.0, 3.0, 3.25, 1.6]), data)
    np.testing.assert_allclose(found, [0, 0, 0, 0, 0.25, 0.4], atol=1e-12)


# Claims

ABOVE = "every critical point found above the infimum has lambda_min < 0 (full rank, N >= K)"
STRICT = "every saddle found is strict (full rank, N >= K)"


def made_up(n: int = 1200, scale: str = "thesis", missing: bool = False, **changed: Any) -> Records:
    """Strict saddles of one cell, no two alike; of the last point some columns are changed."""
    run = {"data": "gaussian", "variant": "", "cell": "a", "lane": "0", "seed": 0, "outcome": "done"}
    about = {"config.study.kind": "realisable", "config.network.width": 4}
    rows = [
        {"cell": "a", "lane": "0", "iteration": i, "start": 0, "gradient": 1e-15, "energy": 1.0, "excess": 1.0, "gap": 0.0,
         "lambda_min": -1.0, "lambda_max": 2.0, "zero_mode": 0.0, "descent": 0.0, "level_error": 0.0, "size": 1.0,
         "output": 0.01 * i, "map_1": 1.0, "map_2": 0.0, "map_3": 0.0, "norms_1": 1.0, "norms_2": 2.0}
        for i in range(n)
    ]  # fmt: skip
    rows[-1] |= changed
    asked = [run, *([run | {"cell": "b"}] if missing else [])]
    return Records("strict_saddles", scale, pl.DataFrame([run | about]), pl.DataFrame(rows), pl.DataFrame(asked))


def verdicts(**changed: Any) -> dict[str, Verdict]:
    records = made_up(**changed)
    return {claim.statement: claim.rule(records) for claim in strict_saddles.CLAIMS}


def test_strict_saddles_alone_bear_the_conjecture_out() -> None:
    found = verdicts()
    assert found[ABOVE].status == found[STRICT].status == "reproduced"
    assert found[ABOVE].n == 1200 and found[ABOVE].observed.startswith("1200 strict saddle, 0 global minimum")
    assert {v.status for k, v in found.items() if "N < K" in k or "deficient" in k} == {"insufficient"}
    assert found["1,000 distinct critical points of F* are found"].status == "reproduced"


@pytest.mark.parametrize(
    ("changed", "above", "strict"),
    [
        ({"lambda_min": -1e-7}, "not_reproduced", "reproduced"),
        ({"lambda_min": -1e-7, "descent": 1e-3}, "not_reproduced", "not_reproduced"),
        ({"lambda_min": -1e-7, "descent": 1e-3, "gradient": 1e-9}, "reproduced", "reproduced"),
        ({"lambda_min": -1e-7, "descent": 1e-3, "gradient": 7e-11, "size": 97.0}, "reproduced", "reproduced"),
        ({"lambda_min": -1e-7, "excess": 1e-15}, "reproduced", "reproduced"),
        ({"missing": True}, "insufficient", "insufficient"),
        ({"missing": True, "lambda_min": 0.1, "descent": 1e-3}, "not_reproduced", "not_reproduced"),
    ],
)
def test_one_point_without_negative_curvature_decides_unless_it_is_a_minimum_or_was_not_polished(
    changed: dict[str, Any], above: str, strict: str
) -> None:
    found = verdicts(**changed)
    assert (found[ABOVE].status, found[STRICT].status) == (above, strict)


def test_points_that_are_alike_are_counted_once_and_one_that_was_not_polished_not_at_all() -> None:
    assert points_of(made_up(n=10)).distinct() == 10
    assert points_of(made_up(n=10, output=0.01 * 3)).distinct() == 9
    assert points_of(made_up(n=10, gradient=1e-9)).distinct() == 9
    count = "1,000 distinct critical points of F* are found"
    assert verdicts(n=900)[count].status == "not_reproduced"
    assert verdicts(n=900, scale="small")[count].status == "insufficient"


@pytest.mark.parametrize(("column", "statement"), [("gap", "F* is the loss"), ("level_error", "F* is half of tr")])
def test_one_point_that_is_off_refutes_what_theory_says_of_all(column: str, statement: str) -> None:
    for size, status in ((1e-9, "reproduced"), (1e-7, "not_reproduced")):
        (found,) = (v for k, v in verdicts(**{column: size}).items() if k.startswith(statement))
        assert found.status == status and found.n == 1200
