"""Networks, batches and solves that tests of solvers share, and heavy ball written by hand."""

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pcexp.energy import Batch
from pcexp.inference import InferenceProblem
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NTK

D_IN, WIDTH, N_HIDDEN, D_OUT, BATCH = 3, 5, 4, 2, 6


def build(activation, form="pre", parameterisation=NTK, skips=True):
    architecture = FullyConnected(
        width=WIDTH,
        n_hidden=N_HIDDEN,
        activation=activation,
        form=form,
        biases=True,
        skips=skips,
        segment_size=3,
    )
    network = architecture.build(parameterisation(), (D_IN,), D_OUT, key=jax.random.key(5))
    scales = by_hand.premultipliers(parameterisation.__name__, D_IN, WIDTH, N_HIDDEN + 1, skips)
    return network, by_hand.layers(network, activation=activation, form=form, skips=skips, scales=scales)


def batch(size=BATCH, seed=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(D_IN, size)), rng.normal(size=(D_OUT, size))


@eqx.filter_jit
def solve(solver, network, x, y):
    return solver.solve(InferenceProblem.from_batch(network, Batch(x, y)))


def solved(solver, network, x, y):
    # Floats are traced in training, so they are here.
    traced = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, solver)
    return solve(traced, network, jnp.asarray(x), jnp.asarray(y))


def agree(value, expected, rtol=1e-10, atol=1e-12):
    for v, e in zip(value, expected, strict=True):
        np.testing.assert_allclose(v, e, rtol=rtol, atol=atol)


def residual(net, x, activities):
    """Root mean square of dF_b/dz over every hidden unit and every sample."""
    return np.sqrt(np.mean(np.square(by_hand.activity_gradient(net, x, activities))))


def heavy_ball(net, x, y, beta, mu, steps):
    activities = last = [*by_hand.forward(net, x)[:-1], y]
    for _ in range(steps):
        gradient = by_hand.activity_gradient(net, x, activities)
        moved = [z - beta * g + mu * (z - w) for z, g, w in zip(activities[:-1], gradient, last[:-1], strict=True)]
        activities, last = [*moved, y], activities
    return activities
