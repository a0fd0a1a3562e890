"""Outputs whose error does not count, against written-out objectives, automatic differentiation and dense least squares."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pcexp.data import Split
from pcexp.energy import Batch, energy, loss
from pcexp.evaluation import evaluate
from pcexp.inference import (
    AdamInference,
    ClosedForm,
    ErrorDescent,
    GradientDescent,
    InferenceProblem,
    Momentum,
    Sequential,
)
from pcexp.learning import BP, PC, Equilibrated
from pcexp.model.architecture import FullyConnected
from pcexp.model.output import Softmax
from pcexp.model.parameterisation import Standard
from pcexp.theory.equilibrated import equilibrated_energy, equilibrated_gradient
from pcexp.train import Training, TrainingSet, advance, initial_state

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, D_OUT, BATCH = 3, 4, 5, 6


def build(activation="tanh", form="post", **more):
    architecture = FullyConnected(width=WIDTH, n_hidden=2, activation=activation, form=form, **more)
    return architecture.build(Standard(), (D_IN,), D_OUT, key=jax.random.key(3))


def batch():
    rng = np.random.default_rng(5)
    x, y, mask = rng.normal(size=(D_IN, BATCH)), rng.normal(size=(D_OUT, BATCH)), rng.random((D_OUT, BATCH)) > 0.4
    assert 0 < mask.sum() < mask.size
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask, jnp.float64)


def weights(network):
    return [segment.weight[0] for segment in network.segments]


def output(ws, x):
    return ws[2] @ jnp.tanh(ws[1] @ jnp.tanh(ws[0] @ x))


def written_energy(ws, hidden, x, y, mask, form):
    """B F of three matrices with tanh, spelt out: observed entries of the output alone count."""
    (z1, z2), phi = hidden, jnp.tanh
    mus = (
        (phi(ws[0] @ x), phi(ws[1] @ z1), ws[2] @ z2)
        if form == "post"
        else (ws[0] @ x, ws[1] @ phi(z1), ws[2] @ phi(z2))
    )
    count = jnp.sum((z1 - mus[0]) ** 2) + jnp.sum((z2 - mus[1]) ** 2)
    return 0.5 * (count + jnp.sum(jnp.where(mask == 1, y - mus[2], 0) ** 2))


slopes = {argnum: jax.jit(jax.grad(written_energy, argnums=argnum), static_argnums=5) for argnum in (0, 1)}


def test_backpropagation_of_masked_targets_is_the_derivative_of_the_written_out_loss():
    network, (x, y, mask) = build(), batch()

    @jax.jit
    def objective(ws):
        return jnp.sum(jnp.where(mask == 1, y - output(ws, x), 0) ** 2) / (2 * BATCH)

    out = eqx.filter_jit(BP("batch_mean").gradient)(network, Batch(x, y, mask))
    for found, wanted in zip(weights(out.gradient), jax.grad(objective)(weights(network)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        [out.loss, eqx.filter_jit(loss)(network, x, y, mask)], objective(weights(network)), rtol=1e-12
    )


@pytest.mark.parametrize("inference_form", ["activities", "deviations"])
@pytest.mark.parametrize("form", ["post", "pre"])
def test_inference_and_learning_descend_the_energy_of_the_observed_entries(form, inference_form):
    network, (x, y, mask) = build(form=form), batch()
    ws, beta, steps = weights(network), 0.2, 7
    hidden = [ws[0] @ x]
    hidden = [jnp.tanh(hidden[0])] if form == "post" else hidden
    second = ws[1] @ (hidden[0] if form == "post" else jnp.tanh(hidden[0]))
    hidden = [hidden[0], jnp.tanh(second) if form == "post" else second]
    for _ in range(steps):
        slope = slopes[1](ws, hidden, x, y, mask, form)
        hidden = [z - beta * g for z, g in zip(hidden, slope, strict=True)]
    wanted = slopes[0](ws, hidden, x, y, mask, form)
    rule = PC(GradientDescent(beta, steps, inference_form), "batch_sum")
    out = eqx.filter_jit(rule.gradient)(network, Batch(x, y, mask))
    for found, expected in zip(weights(out.gradient), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-13)
    slope = slopes[1](ws, hidden, x, y, mask, form)
    rms = np.sqrt(np.mean(np.square(np.concatenate([np.ravel(g) for g in slope]))))
    np.testing.assert_allclose(out.diagnostics["inference_residual"], rms, rtol=1e-8)


SOLVERS = {
    "gradient_descent": GradientDescent(0.2, 30),
    "activities": GradientDescent(0.2, 30, "activities"),
    "halving": GradientDescent(0.2, 30, max_halvings=1),
    "momentum": Momentum(30),
    "adam": AdamInference(0.01, 30),
    "sequential": Sequential(0.2, 10),
    "error_descent": ErrorDescent(20),
    "error_descent, plain": ErrorDescent(20, "descent"),
    "closed_form": ClosedForm(),
}


@eqx.filter_jit
def solved(solver, network, x, y, mask):
    return solver.solve(InferenceProblem.from_batch(network, Batch(x, y, mask)))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_what_a_hidden_target_is_changes_nothing_and_an_observed_one_does(solver):
    network, (x, y, mask) = build("linear"), batch()
    errors = solved(solver, network, x, y, mask).errors
    hidden, seen = (solved(solver, network, x, y + 3 * where, mask).errors for where in (1 - mask, mask))
    for a, b, c in zip(errors, hidden, seen, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert np.max(np.abs(a - c)) > 1e-2
    assert not np.any(np.asarray(errors[-1][0])[np.asarray(mask) == 0])


@pytest.mark.parametrize("name", ["activities", "error_descent", "closed_form"])
def test_a_mask_of_ones_is_no_mask(name):
    network, (x, y, mask) = build("linear"), batch()
    with_ones, without = (solved(SOLVERS[name], network, x, y, m).errors for m in (jnp.ones_like(mask), None))
    for a, b in zip(with_ones, without, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


def least_energy(ws, x, y, mask):
    """Lowest 1/2 sum ||e||^2 of one example over hidden activities and free outputs, by numpy's least squares."""
    eye, free = np.eye(WIDTH), np.diag(np.where(mask == 1, 0.0, 1.0))
    zero = np.zeros((WIDTH, D_OUT))
    rows = np.block([[eye, 0 * eye, zero], [-ws[1], eye, zero], [np.zeros((D_OUT, WIDTH)), -ws[2], free]])
    offset = np.concatenate([-ws[0] @ x, np.zeros(WIDTH), np.where(mask == 1, y, 0)])
    least, *_ = np.linalg.lstsq(rows, -offset, rcond=None)
    return 0.5 * np.sum((rows @ least + offset) ** 2)


def test_the_equilibrated_energy_of_masked_targets_is_the_least_energy_over_free_outputs_too():
    network, (x, y, mask) = build("linear"), batch()
    ws = [np.asarray(w) for w in weights(network)]
    examples = zip(*(np.asarray(array).T for array in (x, y, mask)), strict=True)
    wanted = np.mean([least_energy(ws, *example) for example in examples])
    np.testing.assert_allclose(eqx.filter_jit(equilibrated_energy)(network, x, y, mask=mask), wanted, rtol=1e-10)
    np.testing.assert_allclose(
        eqx.filter_jit(energy)(network, solved(ClosedForm(), network, x, y, mask).errors), wanted, rtol=1e-10
    )
    out = eqx.filter_jit(Equilibrated("batch_mean").gradient)(network, Batch(x, y, mask))
    np.testing.assert_allclose(out.diagnostics["equilibrated_energy"], wanted, rtol=1e-10)


def test_the_gradient_of_the_masked_equilibrated_energy_is_its_derivative():
    network, (x, y, mask) = build("linear", biases=True), batch()
    wanted = eqx.filter_jit(eqx.filter_grad(lambda n: equilibrated_energy(n, x, y, mask=mask)))(network)
    found = eqx.filter_jit(equilibrated_gradient)(network, x, y, mask=mask)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)


def test_masked_targets_of_a_softmax_output_are_refused():
    network, (x, y, mask) = build(output=Softmax()), batch()
    for rule in (BP("batch_mean"), PC(GradientDescent(0.1, 2), "batch_mean")):
        with pytest.raises(ValueError, match="output=squared"):
            rule.gradient(network, Batch(x, y, mask))


def test_training_and_evaluation_count_what_the_mask_of_a_split_counts():
    network, (x, y, mask) = build(), batch()
    data = TrainingSet(x.T, y.T, x, y, mask=mask.T)
    state = initial_state(network, lambda: optax.sgd(0.1), key=jax.random.key(0))
    training = Training(batch_size=BATCH, epochs=1, record_every=1)
    after, rows = advance(
        state, BP("batch_sum"), eqx.Partial(optax.sgd, learning_rate=0.1), data, training,
        lambda seen: {"loss": seen.loss}, 4, jnp.asarray(1, jnp.int32),
    )  # fmt: skip
    out = eqx.filter_jit(BP("batch_sum").gradient)(network, Batch(x, y, mask))
    np.testing.assert_allclose(rows.values["loss"][0], out.loss, rtol=1e-12)
    for new, old, g in zip(*map(weights, (after.network, network, out.gradient)), strict=True):
        np.testing.assert_allclose(new, old - 0.1 * g, rtol=1e-9, atol=1e-14)
    one = Split(*(np.asarray(a.T, np.float32) for a in (x, y, mask)))
    np.testing.assert_allclose(evaluate(network, one)["loss"], out.loss, rtol=1e-5)
