"""Critical points of rank zero, the proof of theorem 3.3, and the order of saddles, against numpy and automatic differentiation."""

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import linear_by_hand
import numpy as np
import pytest

from pcexp.energy import loss
from pcexp.model import parameterisation as parameterisations
from pcexp.model.architecture import FullyConnected
from pcexp.theory import saddles
from pcexp.theory.equilibrated import equilibrated_energy, equilibrated_gradient
from pcexp.theory.hessian import hessian
from pcexp.theory.saddles import negative_curvature, zero_rank

pytestmark = pytest.mark.usefixtures("x64")

BATCH = 7


def built(n_hidden, *, width=4, d_in=3, d_out=2, name="Standard", skips=False):
    architecture = FullyConnected(width, n_hidden, "linear", "pre", skips=skips, segment_size=1)
    network = architecture.build(getattr(parameterisations, name)(), (d_in,), d_out, key=jax.random.key(1))
    scales = by_hand.premultipliers(name, d_in, width, n_hidden + 1, skips)
    return network, by_hand.layers(network, activation="linear", form="pre", skips=skips, scales=scales)


def batch(d_in=3, d_out=2, seed=2):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(d_in, BATCH))), jnp.asarray(rng.normal(size=(d_out, BATCH)))


def with_weights(network, changed):
    """The network with other weights in the layers named, one layer a segment."""
    return eqx.tree_at(
        lambda n: [n.segments[layer - 1].weight for layer in changed],
        network,
        [jnp.asarray(w)[None] for w in changed.values()],
    )


def largest(gradient):
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient))


def hidden_rank_deficient():
    """W_2 W_1 = 0 with neither zero, and W_3 whatever it was."""
    network, _ = built(3)
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    return with_weights(
        network,
        {1: u[:, :2] @ rng.normal(size=(2, 3)), 2: rng.normal(size=(4, 2)) @ u[:, 2:].T, 4: np.zeros((2, 4))},
    )


def hidden_uncorrelated(y, x):
    """zhat_H = W_1 x not zero but uncorrelated with y: P Sigma_xy = 0 with one output and three inputs."""
    network, _ = built(1, d_out=1)
    free = np.linalg.svd(np.asarray(y @ x.T))[2][1:]  # orthogonal to the rows of Sigma_yx
    w = np.random.default_rng(0).normal(size=(4, 2)) @ free
    return with_weights(network, {1: w, 2: np.zeros((1, 4))})


POINTS = {
    "origin": lambda: zero_rank(built(3)[0]),
    "origin, one hidden layer": lambda: zero_rank(built(1)[0]),
    "B.3": lambda: zero_rank(built(3)[0], [3]),
    "all but the ends": lambda: zero_rank(built(4, name="NTK")[0], [2, 3, 4]),
    "skips": lambda: zero_rank(built(3, name="MuPC", skips=True)[0], [2, 3]),
    "a product of two is zero": hidden_rank_deficient,
}


@pytest.mark.parametrize("point", POINTS)
def test_critical_points_of_rank_zero_are_critical_and_have_the_proofs_negative_curvature(point):
    network = POINTS[point]()
    x, y = batch()
    check_critical_with_negative_curvature(network, x, y)


def test_hidden_activities_need_only_be_uncorrelated_with_the_target():
    x, y = batch(d_out=1)
    network = hidden_uncorrelated(y, x)
    assert largest(network.segments[0]) > 0.1
    check_critical_with_negative_curvature(network, x, y)


def check_critical_with_negative_curvature(network, x, y):
    def energy(t, direction):
        return equilibrated_energy(saddles.along(network, direction, t), x, y)

    assert largest(equilibrated_gradient(network, x, y)) < 1e-13
    assert largest(jax.grad(lambda n: loss(n, x, y))(network)) < 1e-13
    found = negative_curvature(network, x, y)
    second = jax.jit(jax.grad(jax.grad(energy)))(0.0, found.direction)
    np.testing.assert_allclose(found.form, second, rtol=1e-9)
    assert float(found.form) < -1e-3
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(found.direction)))
    np.testing.assert_allclose(norm, 1, rtol=1e-12)


def test_the_form_is_minus_the_mean_of_y_a_y_with_a_from_products_of_matrices_by_hand():
    network, net = built(3)
    x, y = batch()
    found = negative_curvature(zero_rank(network, [2, 3]), x, y)
    v, w = np.asarray(found.direction.segments[-1].weight[0]), [layer.weight for layer in net]
    upper = [v, v @ w[2], v @ w[2] @ w[1]]
    a = sum(m @ m.T for m in upper)
    y = np.asarray(y)
    np.testing.assert_allclose(found.form, -np.mean([y[:, b] @ a @ y[:, b] for b in range(BATCH)]), rtol=1e-12)


def test_it_is_the_lowest_eigenvalue_where_all_lower_weights_but_the_last_are_zero():
    network = zero_rank(built(3)[0], [3])
    x, y = batch()
    dense = jax.jit(lambda n: hessian(lambda n: equilibrated_energy(n, x, y), n))(network)
    np.testing.assert_allclose(negative_curvature(network, x, y).form, np.linalg.eigvalsh(dense)[0], rtol=1e-10)


@pytest.mark.parametrize("zeroed", [1, 2, 3])
def test_a_map_of_rank_zero_whose_output_layer_is_not_zero_is_no_critical_point(zeroed):
    """The proof: F* changes at the rate -1/B sum q^T (S - I) q < 0 as W_L grows."""
    network, net = built(3)
    network = with_weights(network, {zeroed: 0 * net[zeroed - 1].weight})
    x, y = batch()
    gradient = equilibrated_gradient(network, x, y)
    rate = float(jnp.sum(gradient.segments[-1].weight * network.segments[-1].weight))
    w = [layer.weight if index + 1 != zeroed else 0 * layer.weight for index, layer in enumerate(net)]
    s = by_hand.rescaling(w)
    q = np.linalg.solve(s, np.asarray(y))
    np.testing.assert_allclose(rate, -np.sum(q * ((s - np.eye(2)) @ q)) / BATCH, rtol=1e-10)
    assert rate < -1e-3


def test_hidden_activities_of_full_rank_leave_a_negative_direction_if_inputs_and_targets_correlate():
    """No direction of W_L alone need be negative there: one hidden unit that is large and uncorrelated with the target."""
    x, y = batch(d_out=1)
    network, _ = built(1, width=1, d_out=1)
    free = np.linalg.svd(np.asarray(y @ x.T))[2][1:2]
    network = with_weights(network, {1: 10 * free, 2: np.zeros((1, 1))})
    assert largest(equilibrated_gradient(network, x, y)) < 1e-12
    with pytest.raises(ValueError, match="span all hidden units"):
        negative_curvature(network, x, y)
    dense = hessian(lambda n: equilibrated_energy(n, x, y), network)
    assert dense[-1, -1] > 1  # W_L alone
    assert np.linalg.eigvalsh(dense)[0] < -1e-4


def test_without_correlation_a_critical_point_of_rank_zero_need_not_be_a_strict_saddle():
    """F* = (mean y^2 + w_2^2 w_1^2 mean x^2) / (2 + 2 w_2^2) has minima w_2 = 0 where w_1^2 mean x^2 > mean y^2."""
    x, y = jnp.array([[1.0, -1.0, 1.0, -1.0]]), jnp.array([[1.0, 1.0, -1.0, -1.0]])
    network, _ = built(1, width=1, d_in=1, d_out=1)
    for w1, curvature in ((2.0, 3.0), (0.5, -0.75)):
        point = with_weights(network, {1: [[w1]], 2: [[0.0]]})
        assert largest(equilibrated_gradient(point, x, y)) == 0
        dense = hessian(lambda n: equilibrated_energy(n, x, y), point)
        np.testing.assert_allclose(dense, [[0, 0], [0, curvature]], atol=1e-13)


def generic_ray(network, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), network)


@pytest.mark.parametrize("n_hidden", [1, 2, 3, 5])
def test_along_generic_rays_from_the_origin_the_loss_changes_as_d_to_the_h_plus_1_and_f_as_d_squared(n_hidden):
    network = zero_rank(built(n_hidden)[0])
    x, y = batch()
    distances = jnp.geomspace(1e-3, 1e-2, 5)

    @jax.jit
    def changes(direction):
        along = [saddles.along(network, direction, d) for d in distances]
        return [
            jnp.stack([change(network, moved, x, y) for moved in along])
            for change in (saddles.loss_change, saddles.equilibrated_change)
        ]

    for seed in range(5):
        of_loss, of_equilibrated = changes(generic_ray(network, seed))
        assert float(saddles.saddle_order(distances, of_loss)) == pytest.approx(n_hidden + 1, abs=2e-2)
        assert float(saddles.saddle_order(distances, of_equilibrated)) == pytest.approx(2, abs=2e-2)
        if n_hidden > 1:
            assert np.all(np.asarray(of_equilibrated) < 0)


def test_from_the_saddle_of_b_3_one_factor_less_has_to_leave_zero():
    network = zero_rank(built(3)[0], [3])
    x, y = batch()
    distances, ray = jnp.geomspace(1e-3, 1e-2, 5), generic_ray(network, 0)
    changes = jnp.stack([saddles.loss_change(network, saddles.along(network, ray, d), x, y) for d in distances])
    assert float(saddles.saddle_order(distances, changes)) == pytest.approx(3, abs=2e-2)


def test_changes_are_differences_of_the_values_anywhere():
    network, _ = built(2, name="MuPC", skips=True)
    x, y = batch()
    moved = saddles.along(network, generic_ray(network, 0), 0.3)
    for change, value in ((saddles.loss_change, loss), (saddles.equilibrated_change, equilibrated_energy)):
        expected = value(moved, x, y) - value(network, x, y)
        np.testing.assert_allclose(change(network, moved, x, y), expected, rtol=1e-10)


def test_tiny_changes_have_no_round_off():
    network = zero_rank(built(5)[0])
    x, y = batch()
    ray = generic_ray(network, 0)
    w = [np.asarray(segment.weight[0]) for segment in ray.segments]
    slope = -np.mean(np.sum(np.asarray(y) * (np.linalg.multi_dot(w[::-1]) @ np.asarray(x)), axis=0))
    change = saddles.loss_change(network, saddles.along(network, ray, 1e-4), x, y)
    np.testing.assert_allclose(change, 1e-24 * slope, rtol=1e-10)


def test_a_fitted_network_is_a_critical_point_of_both():
    network, _ = built(2, width=5, name="MuPC", skips=True)
    x, _ = batch()
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3))) @ x
    point = saddles.fitted(network, x, y)
    assert float(loss(point, x, y)) < 1e-25
    assert largest(equilibrated_gradient(point, x, y)) < 1e-12
    assert linear_by_hand.flat(leaf for leaf in jax.tree.leaves(point)).size == 5 * 3 + 5 * 5 + 2 * 5


@pytest.mark.parametrize(
    ("kept", "message"),
    [([4], r"kept=\[4\]: layers are 1 to 3"), ([0], "layers are 1 to 3"), ([1, 2, 3], "not all of them")],
)
def test_layers_that_cannot_be_kept_are_named(kept, message):
    with pytest.raises(ValueError, match=message):
        zero_rank(built(3)[0], kept)


def test_a_layer_with_a_skip_does_not_cut_the_network():
    with pytest.raises(ValueError, match="without a skip"):
        zero_rank(built(3, skips=True)[0], [1, 3])


def test_an_output_layer_that_is_not_zero_is_refused():
    with pytest.raises(ValueError, match="W_L = 0"):
        negative_curvature(built(2)[0], *batch())
