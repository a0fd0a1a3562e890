"""Hessians of the loss and of F*: products and closed forms against complex steps through numpy, and the theorems at the origin."""

from dataclasses import replace

import by_hand
import jax
import jax.numpy as jnp
import linear_by_hand
import numpy as np
import pytest

from pcexp.energy import Batch, energy, loss, outputs
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.model import parameterisation as parameterisations
from pcexp.model.architecture import FullyConnected
from pcexp.theory import hessian as hessians
from pcexp.theory.equilibrated import equilibrated_energy, rescaling
from pcexp.theory.hessian import hessian, hessian_product
from pcexp.theory.saddles import fitted, zero_rank

pytestmark = pytest.mark.usefixtures("x64")

BATCH = 6


def built(n_hidden, *, width=3, d_in=4, d_out=2, activation="linear", name="Standard", skips=False):
    form = "pre" if skips else "post"
    architecture = FullyConnected(width, n_hidden, activation, form, skips=skips, segment_size=2)
    network = architecture.build(getattr(parameterisations, name)(), (d_in,), d_out, key=jax.random.key(1))
    scales = by_hand.premultipliers(name, d_in, width, n_hidden + 1, skips)
    return network, by_hand.layers(network, activation=activation, form=form, skips=skips, scales=scales)


def batch(d_in=4, d_out=2, seed=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(d_in, BATCH)), rng.normal(size=(d_out, BATCH)) + 0.5


@jax.jit  # once for all points of a network
def by_autodiff(network, x, y):
    return hessian(lambda n: loss(n, x, y), network), hessian(lambda n: equilibrated_energy(n, x, y), network)


@jax.jit
def in_closed_form(network, x, y):
    return hessians.zero_output_loss_hessian(network, x, y), hessians.zero_output_equilibrated_hessian(network, x, y)


def at(network, x, y):
    """Hessians by automatic differentiation of the loss and of F*."""
    return by_autodiff(network, jnp.asarray(x), jnp.asarray(y))


def loss_gradient(x, y):
    return lambda net: linear_by_hand.flat(w for w, _ in by_hand.loss_gradient(net, x, y))


def test_products_with_the_losss_hessian_are_complex_steps_of_backpropagation_by_hand_in_a_nonlinear_net():
    network, net = built(3, activation="tanh")
    x, y = batch()
    v = np.random.default_rng(0).normal(size=sum(layer.weight.size for layer in net))
    expected = linear_by_hand.derivative(loss_gradient(x, y), net, v)
    product = jax.jit(hessian_product(lambda n: loss(n, jnp.asarray(x), jnp.asarray(y)), network))
    np.testing.assert_allclose(product(jnp.asarray(v)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("skips", [False, True])
def test_dense_hessians_are_complex_steps_of_the_gradients_in_the_stated_order(skips):
    network, net = built(3, name="MuPC" if skips else "Standard", skips=skips)
    x, y = batch()
    precisions = np.array([0.5, 2.0, 1.5, 0.7])
    of_loss, of_equilibrated = at(replace(network, precisions=tuple(precisions.tolist())), x, y)
    np.testing.assert_allclose(of_loss, linear_by_hand.jacobian(loss_gradient(x, y), net), rtol=1e-9, atol=1e-11)
    expected = linear_by_hand.jacobian(lambda n: linear_by_hand.equilibrated_gradient(n, x, y, precisions), net)
    np.testing.assert_allclose(of_equilibrated, expected, rtol=1e-9, atol=1e-11)


CASES = {  # n_hidden, layers whose weights are kept, parameterisation, skips
    "origin, H=1": (1, (), "Standard", False),
    "origin, H=2": (2, (), "NTK", False),
    "origin, H=4": (4, (), "Standard", False),
    "origin with skips": (3, (), "MuPC", True),
    "B.3, H=2: the ends couple": (2, (2,), "Standard", False),
    "B.3, H=4": (4, (4,), "Standard", False),
    "B.3 with skips": (3, (3,), "MuPC", True),
    "only the first layer is zero": (3, (2, 3), "NTK", False),
    "only the output is zero": (3, (1, 2, 3), "Standard", False),  # no critical point
}


def placed(case):
    n_hidden, kept, name, skips = CASES[case]
    network, _ = built(n_hidden, name=name, skips=skips)
    if len(kept) < n_hidden:
        return zero_rank(network, kept)
    last = network.segments[-1]
    return jax.tree.map(lambda w: 0 * w if w is last.weight else w, network)


@pytest.mark.parametrize("case", CASES)
def test_where_the_output_is_zero_hessians_are_those_of_the_closed_form(case):
    network = placed(case)
    x, y = (jnp.asarray(part) for part in batch())
    for precisions in (None, tuple((0.5 + np.arange(network.depth) / 2).tolist())):
        weighed = replace(network, precisions=precisions)
        for mine, theirs in zip(in_closed_form(weighed, x, y), at(weighed, x, y), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("origin")])
def test_spectra_at_the_origin_are_those_of_the_dense_hessians_and_read_no_weights(case):
    n_hidden, _, name, skips = CASES[case]
    network, _ = built(n_hidden, name=name, skips=skips)
    x, y = (jnp.asarray(part) for part in batch())
    for spectrum, dense in zip(hessians.origin_spectra(network, x, y), at(placed(case), x, y), strict=True):
        np.testing.assert_allclose(spectrum, np.linalg.eigvalsh(dense), atol=1e-12)


def test_theorem_3_2_minus_the_eigenvalues_of_sigma_yy_each_n_times_and_a_null_hessian_of_the_loss():
    network = placed("origin, H=4")
    x, y = batch()
    of_loss, of_equilibrated = at(network, x, y)
    negative = np.repeat(-np.linalg.eigvalsh(y @ y.T / BATCH), 3)
    expected = np.sort(np.concatenate([negative, np.zeros(len(of_loss) - len(negative))]))
    np.testing.assert_array_equal(of_loss, 0)
    np.testing.assert_allclose(np.linalg.eigvalsh(of_equilibrated), expected, atol=1e-13)
    np.testing.assert_allclose(hessians.zero_rank_spectrum(network, jnp.asarray(y)), expected, atol=1e-13)
    # Eq. 4.8 block by block: nothing but -Sigma_yy (x) I_N, and that on W_L.
    block = np.zeros_like(of_equilibrated)
    block[-6:, -6:] = -np.kron(y @ y.T / BATCH, np.eye(3))
    np.testing.assert_allclose(of_equilibrated, block, atol=1e-14)


@pytest.mark.parametrize("n_hidden", [1, 2, 5])
def test_at_the_origin_a_chain_has_the_curvatures_of_theorems_a_1_and_3_2(n_hidden):
    network, _ = built(n_hidden, width=1, d_in=1, d_out=1)
    x, y = batch(1, 1)
    found = [np.linalg.eigvalsh(h) for h in at(zero_rank(network), x, y)]
    xy, yy = np.mean(x * y), np.mean(y * y)
    if n_hidden == 1:  # A.1 has one example: there sqrt(y^4 + 4 x^2 y^2) = y sqrt(y^2 + 4 x^2)
        root = np.sqrt(yy**2 + 4 * xy**2)
        expected = [-abs(xy), abs(xy)], [(-yy - root) / 2, (-yy + root) / 2]
    else:
        expected = np.zeros(n_hidden + 1), [-yy, *np.zeros(n_hidden)]
    np.testing.assert_allclose(found, expected, atol=1e-13)
    assert all(np.all(below <= above + 1e-13) for below, above in zip(found[1], found[0], strict=True))


@pytest.mark.parametrize("n_hidden", [3, 4])
def test_at_the_zero_rank_saddle_of_b_3_the_loss_is_flat_and_f_has_one_plus_the_squared_singular_values(n_hidden):
    network, net = built(n_hidden)
    x, y = batch()
    of_loss, of_equilibrated = at(zero_rank(network, [n_hidden]), x, y)
    sigma = np.linalg.svd(net[-2].weight, compute_uv=False)
    negative = -np.outer(np.linalg.eigvalsh(y @ y.T / BATCH), 1 + sigma**2).ravel()
    expected = np.sort(np.concatenate([negative, np.zeros(len(of_loss) - len(negative))]))
    np.testing.assert_array_equal(of_loss, 0)
    np.testing.assert_allclose(np.linalg.eigvalsh(of_equilibrated), expected, atol=1e-12)
    closed = hessians.zero_rank_spectrum(zero_rank(network, [n_hidden]), jnp.asarray(y))
    np.testing.assert_allclose(closed, expected, atol=1e-12)


@pytest.mark.parametrize(("beta", "steps"), [(0.1, 50), (0.1, 60), (0.3, 4)])
def test_unrolled_inference_has_the_block_of_theorem_3_2_times_one_minus_one_minus_beta_to_the_two_t(beta, steps):
    network = placed("origin, H=2")
    x, y = (jnp.asarray(part) for part in batch())
    theory = hessians.zero_output_equilibrated_hessian(network, x, y)  # without precisions they are 1
    weighed = replace(network, precisions=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(theory, in_closed_form(weighed, x, y)[1], rtol=1e-14)

    def unrolled(n):
        found = GradientDescent(beta, steps).solve(InferenceProblem.from_batch(n, Batch(x, y)))
        return energy(n, found.errors)

    numeric = jax.jit(lambda n: hessian(unrolled, n))(network)
    np.testing.assert_allclose(numeric, theory * (1 - (1 - beta) ** (2 * steps)), rtol=1e-10, atol=1e-13)
    if steps == 60:  # 0.9^120 = 3.2e-6
        assert 1e-6 < np.max(np.abs(numeric - theory)) / np.max(np.abs(theory)) < 1e-5


@pytest.mark.parametrize("d_out", [1, 2])
def test_where_every_example_is_fitted_hessians_are_those_of_the_linearised_network(d_out):
    """1/B sum_b J_b^T M^-1 J_b with J_b = d yhat_b / d theta: M = I for the loss, M = S for F* (B.3.7, A.2)."""
    network, _ = built(2, width=5, d_out=d_out)
    x, _ = batch()
    y = np.random.default_rng(5).normal(size=(d_out, 4)) @ x
    network = fitted(network, jnp.asarray(x), jnp.asarray(y))
    of_loss, of_equilibrated = at(network, x, y)
    vector, unravel = hessians.vectorised(network)
    j, s = jax.jacobian(lambda v: outputs(unravel(v), jnp.asarray(x)))(vector), rescaling(network)
    exact = {"rtol": 1e-9, "atol": 1e-11}
    for of, metric in ((of_loss, np.eye(d_out)), (of_equilibrated, s)):
        expected = np.einsum("kbm,kl,lbn->mn", j, np.linalg.inv(metric), j) / BATCH
        np.testing.assert_allclose(of, expected, **exact)
    if d_out == 1:
        np.testing.assert_allclose(of_equilibrated, of_loss / s, **exact)


@pytest.mark.parametrize("n_hidden", [1, 2, 5, 10])
def test_minima_of_linear_chains_are_s_times_flatter_on_the_equilibrated_energy(n_hidden):
    """B.3.7; A.2 for one hidden unit: s = 1 + w_2^2."""
    network, _ = built(n_hidden, width=1, d_in=1, d_out=1)
    network = jax.tree.map(lambda w: 0.5 + jnp.abs(w), network)
    x, y = batch(1, 1)[0], -batch(1, 1)[0]
    network = fitted(network, jnp.asarray(x), jnp.asarray(y))
    w = linear_by_hand.flat(segment.weight for segment in network.segments)
    s = 1 + sum(np.prod(w[first:]) ** 2 for first in range(1, len(w)))
    of_loss, of_equilibrated = at(network, x, y)
    np.testing.assert_allclose(np.prod(w), -1, rtol=1e-12)
    np.testing.assert_allclose(of_equilibrated, of_loss / s, rtol=1e-10, atol=1e-12)
    # Along the gradient of the map the loss has curvature mean(x^2) |grad prod w|^2, and none across it.
    expected = np.mean(x**2) * np.sum((np.prod(w) / w) ** 2)
    np.testing.assert_allclose(np.linalg.eigvalsh(of_loss)[-1], expected, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.eigvalsh(of_loss)[:-1], 0, atol=1e-9)


def test_dense_hessians_that_are_too_large_are_refused_with_what_works():
    network, _ = built(1, width=100, d_in=100)
    with pytest.raises(ValueError, match=r"10200 weights.*hessian_product"):
        hessian(lambda n: loss(n, jnp.ones((100, 2)), jnp.ones((2, 2))), network)


def test_closed_forms_refuse_what_they_do_not_hold_for():
    network, _ = built(1, activation="tanh")
    with pytest.raises(ValueError, match=r"network\.activation=linear and network\.biases=false"):
        hessians.zero_output_loss_hessian(network, jnp.ones((4, 2)), jnp.ones((2, 2)))
