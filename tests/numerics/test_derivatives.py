"""Whatever JAX differentiates has its true derivative: public functions against central differences along random directions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from pcexp import energy as e
from pcexp.energy import Batch
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.model import Convolutional, FullyConnected, MuPC, Pair, Sigmoid, Softmax, Squared, Standard
from pcexp.model.segments import Dense
from pcexp.problem import perturbed_pass
from pcexp.theory import equilibrated, saddles
from pcexp.theory.activity_hessian import hessian_product

pytestmark = pytest.mark.usefixtures("x64")
D, N, K, B = 4, 5, 3, 6
STEP = 1e-5
OUTPUTS = {"squared": Squared(), "softmax": Softmax(), "sigmoid": Sigmoid()}


def dense(activation="tanh", output="squared", parameterisation=MuPC(), **more):  # noqa: B008  # it has no state
    net = FullyConnected(N, 3, activation, "pre", True, True, 1, OUTPUTS[output], **more)
    return net.build(parameterisation, (D,), K, key=jr.key(0))


def data():
    return jr.normal(jr.key(1), (D, B)), jax.nn.softmax(jr.normal(jr.key(2), (K, B)), axis=0)


def hidden(net, x):
    return tuple(z + 0.1 * jr.normal(jr.key(3), z.shape) for z in e.forward_pass(net, x).activities[:-1])


def agrees(f, at, order=1):
    """Derivatives of f along two directions against central differences of f, of order two against those of its gradient."""
    f = jax.jit(f)
    for seed in range(2):
        leaves, tree = jax.tree.flatten(at)
        drawn = [jr.normal(jr.fold_in(jr.key(seed), i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
        direction = jax.tree.unflatten(tree, drawn)

        def along(g, t, direction=direction):
            return g(jax.tree.map(lambda a, v: a + t * v, at, direction))

        for g in (f, jax.jit(jax.grad(f)))[:order]:
            exact = jax.jvp(g, (at,), (direction,))[1]
            wanted = jax.tree.map(lambda up, down: (up - down) / (2 * STEP), along(g, STEP), along(g, -STEP))
            exact, wanted = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (exact, wanted))
            assert np.linalg.norm(exact - wanted) <= 2e-7 * np.linalg.norm(wanted) + 1e-10
        reverse = jax.tree.map(lambda g, v: jnp.sum(g * v), jax.grad(f)(at), direction)
        np.testing.assert_allclose(
            sum(jax.tree.leaves(reverse)), jax.jvp(f, (at,), (direction,))[1], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("premultipliers", ["everywhere", "forward_pass"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_objective_of_ones_own_on_the_outputs_has_the_gradient_of_its_value(output, premultipliers):
    net, (x, y) = dense(output=output, premultipliers=premultipliers), data()
    agrees(lambda at: -jnp.sum(y * jnp.log(0.1 + jnp.square(e.outputs(*at)))), (net, x))
    agrees(lambda at: e.loss(*at), (net, x, y), order=2)
    if output == "softmax":
        own = jax.grad(lambda n: -jnp.sum(y * jnp.log(e.outputs(n, x))) / B)(net)
        for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(jax.grad(e.loss)(net, x, y)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("premultipliers", ["everywhere", "forward_pass"])
@pytest.mark.parametrize("activation", ["linear", "tanh", "relu"])
def test_energies_and_errors_have_their_true_derivatives(activation, premultipliers):
    net, (x, y) = dense(activation, premultipliers=premultipliers), data()
    z = (*hidden(net, x), y[None])
    agrees(lambda at: e.energy(at[0], e.prediction_errors(*at)), (net, x, z), order=2)
    agrees(lambda at: e.summed_energy(at[0], e.prediction_errors(*at)), (net, x, z))


@pytest.mark.parametrize("form", ["activities", "deviations"])
def test_the_gradient_of_inference_differentiates_by_weights_inputs_and_activities(form):
    net, (x, y) = dense(), data()
    weights = [jr.normal(jr.key(9), z.shape) for z in hidden(net, x)]

    def objective(at):
        network, x, y, z = at
        gradient = InferenceProblem.from_batch(network, Batch(x, y)).errors_and_gradient(form, z)[1]
        return sum(jnp.sum(w * g) for w, g in zip(weights, gradient, strict=True))

    agrees(objective, (net, x, y, hidden(net, x)))


def test_the_energy_after_steps_of_inference_and_of_a_perturbed_pass_have_their_derivatives():
    net, (x, y) = dense(), data()
    solver = GradientDescent(0.1, 3, wavefront=False)
    agrees(lambda at: solver.solve(InferenceProblem.from_batch(at[0], Batch(*at[1:]))).energy, (net, x, y), order=2)
    small = tuple(0.1 * z for z in hidden(net, x))

    def left(at):
        output, deviations = perturbed_pass(InferenceProblem.from_batch(at[0], Batch(x, y)), at[1])
        return jnp.sum(output**3) + sum(jnp.sum(d**2) for d in deviations)

    agrees(left, (net, small), order=2)


def test_the_activity_hessian_is_the_derivative_of_the_gradient():
    net, (x, y) = dense(), data()
    problem = InferenceProblem.from_batch(net, Batch(x, y))
    still = problem.start("deviations")
    v, h = jax.tree.map(lambda z: jr.normal(jr.key(4), z.shape), still), 1e-6
    up, down = (problem.errors_and_gradient("deviations", jax.tree.map(lambda a, s=s: s * a, v))[1] for s in (h, -h))
    for found, a, b in zip(hessian_product(problem)(v), up, down, strict=True):
        np.testing.assert_allclose(found, (a - b) / (2 * h), atol=1e-8)


def test_a_convolutional_net_and_a_pair_have_their_derivatives():
    images = Convolutional((3,), (5,), "tanh", output=Softmax()).build(Standard(), (5, 4, 2), K, key=jr.key(0))
    x, y = jr.normal(jr.key(1), (B, 5, 4, 2)), data()[1]
    agrees(lambda at: -jnp.sum(y * jnp.log(e.outputs(*at))), (images, x))
    down = FullyConnected(N, 3, "tanh").build(Standard(), (K,), D, key=jr.key(1))
    up = FullyConnected(N, 3, "tanh").build(Standard(), (D,), K, key=jr.key(2))
    agrees(lambda at: sum(jnp.sum(z**3) for z in Pair(*at[:2]).guess(at[2])), (up, down, y))


def test_theory_has_its_derivatives_by_weights_inputs_and_targets():
    net, (x, y) = dense("linear"), data()
    mask = jnp.asarray(np.arange(K * B).reshape(K, B) % 4 > 0, float)
    agrees(lambda at: equilibrated.equilibrated_energy(*at), (net, x, y), order=2)
    agrees(lambda at: equilibrated.equilibrated_energy(*at, mask=mask), (net, x, y), order=2)
    agrees(lambda at: equilibrated.equilibrium(at[0], e.forward_pass(*at[:2]), at[2]).energy, (net, x, y), order=2)
    agrees(lambda at: jnp.sum(jnp.sin(equilibrated.rescaling(at))), net, order=2)
    agrees(lambda at: jnp.sum(equilibrated.free_input(at[0], at[1], jnp.ones((D, B)), 0.5) ** 3), (net, y))
    plain = FullyConnected(N, 3, "linear").build(Standard(), (D,), K, key=jr.key(0))
    moved = jax.tree.map(lambda w: 1.1 * w, plain)
    for change in (saddles.loss_change, saddles.equilibrated_change):
        agrees(lambda at, change=change: change(*at), (plain, moved, x, y))


def test_a_solve_of_premultipliers_in_the_forward_pass_alone_keeps_its_own_derivatives_and_weights_learn_in_their_tree():
    net, (x, y) = dense(premultipliers="forward_pass"), data()
    problem = InferenceProblem.from_batch(net, Batch(x, y))
    assert all(isinstance(segment, Dense) and segment.solving for segment in problem.network.segments)
    assert jax.tree.structure(eqx.filter(net, eqx.is_array)) == jax.tree.structure(
        eqx.filter(
            net.with_segments(s.with_parameters(s.weight, s.bias) for s in problem.network.segments), eqx.is_array
        )
    )
