"""What is measured at a point of a linear network: Hessians by three routes, their spectra, and changes along a ray."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import Batch, energy, loss
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.model.network import Network
from pcexp.theory import hessian as theory
from pcexp.theory.equilibrated import equilibrated_energy, equilibrated_gradient
from pcexp.theory.saddles import along, equilibrated_change, loss_change

Inputs = Float[Array, "d_in batch"]
Targets = Float[Array, "d_out batch"]
Square = Float[Any, "n n"]
DISTANCES = np.geomspace(1e-4, 1e-3, 9)
"""From the point along a ray."""


class Hessians(NamedTuple):
    """Of the loss and of F*: closed forms, automatic differentiation, and of the energy after each number of steps."""

    closed_loss: Square
    closed_equilibrated: Square
    loss: Square
    equilibrated: Square
    unrolled: tuple[Square, ...]


def seen(network: Network, x: Inputs) -> tuple[Network, Float[Array, "rank batch"]]:
    """The network that reads x in an orthonormal basis of the inputs of the batch: W_1 Q and Q^T x, x = Q Q^T x.

    Loss, F* and unrolled energies depend on W_1 through W_1 x alone, so the rest of W_1 has zeros in every Hessian: of 784
    input pixels a batch of 64 leaves 64 directions. Nothing is approximated.
    """
    if len(x) <= x.shape[1]:
        return network, x
    basis = jnp.linalg.svd(x, full_matrices=False)[0]
    first = network.segments[0]
    reading = dataclasses.replace(first, weight=first.weight @ basis)
    return Network((reading, *network.segments[1:])), basis.T @ x


def unrolled_energy(network: Network, x: Inputs, y: Targets, *, activity_lr: float, steps: int) -> Float[Array, ""]:
    """Energy after so many steps of gradient descent on the activities, from the forward pass."""
    problem = InferenceProblem.from_batch(network, Batch(x, y))
    return energy(network, GradientDescent(activity_lr, steps, wavefront=False).solve(problem).errors)


@eqx.filter_jit
def hessians(network: Network, x: Inputs, y: Targets, *, activity_lr: float, horizons: tuple[int, ...]) -> Hessians:
    """All Hessians at a point where W_L = 0."""

    def unrolled(steps: int) -> Array:
        return theory.hessian(lambda n: unrolled_energy(n, x, y, activity_lr=activity_lr, steps=steps), network)

    return Hessians(
        theory.zero_output_loss_hessian(network, x, y),
        theory.zero_output_equilibrated_hessian(network, x, y),
        theory.hessian(lambda n: loss(n, x, y), network),
        theory.hessian(lambda n: equilibrated_energy(n, x, y), network),
        tuple(unrolled(steps) for steps in horizons),
    )


def spectrum(h: Square, size: int) -> Float[np.ndarray, " size"]:
    """Eigenvalues, ascending, of a matrix in its place among zeros: of `size` rows in all. Rows of zeros are not solved for."""
    kept = np.flatnonzero(np.any(h != 0, axis=1))
    values = np.linalg.eigvalsh(h[np.ix_(kept, kept)])
    return np.sort(np.concatenate([values, np.zeros(size - len(values))]))


def theorem_3_2(y: np.ndarray, width: int, size: int) -> Float[np.ndarray, " size"]:
    """Theorem 3.2, n_hidden > 1: minus the eigenvalues of Sigma_yy, each N times, and zeros, ascending."""
    values = -np.repeat(np.linalg.eigvalsh(y @ y.T / y.shape[1]), width)
    return np.sort(np.concatenate([values, np.zeros(size - len(values))]))


@eqx.filter_jit
def outside(network: Network, x: Inputs, y: Targets, *, key: PRNGKeyArray) -> Float[Array, ""]:
    """Norm of H v / ||v|| for both Hessians, v a random change of W_1 that no input of the batch meets; 0 where there is none."""
    if len(x) <= x.shape[1]:
        return jnp.zeros(())
    basis = jnp.linalg.svd(x, full_matrices=False)[0]
    first = network.segments[0]
    drawn = jr.normal(key, first.weight.shape, first.weight.dtype)
    unseen = dataclasses.replace(first, weight=drawn - (drawn @ basis) @ basis.T)
    v, _ = theory.vectorised(Network((unseen, *jax.tree.map(jnp.zeros_like, network.segments[1:]))))
    unit = v / jnp.linalg.norm(v)
    objectives: list[theory.Objective] = [lambda n: loss(n, x, y), lambda n: equilibrated_energy(n, x, y)]
    products = [theory.hessian_product(objective, network)(unit) for objective in objectives]
    return jnp.max(jnp.stack([jnp.linalg.norm(product) for product in products]))


@eqx.filter_jit
def ray(network: Network, x: Inputs, y: Targets, *, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Changes of the loss and of F* at `DISTANCES` along a direction with normal entries."""
    vector, unravel = theory.vectorised(network)
    direction = unravel(jr.normal(key, vector.shape, vector.dtype))

    def changes(distance: Array) -> tuple[Array, Array]:
        moved = along(network, direction, distance)
        return loss_change(network, moved, x, y), equilibrated_change(network, moved, x, y)

    return jax.lax.map(changes, jnp.asarray(DISTANCES))


@eqx.filter_jit
def largest_gradient(network: Network, x: Inputs, y: Targets) -> Float[Array, ""]:
    """The largest entry of the gradients of the loss and of F*: 0 at a critical point of both."""
    gradients = jax.grad(loss)(network, x, y), equilibrated_gradient(network, x, y)
    return jnp.max(jnp.abs(jnp.concatenate([theory.vectorised(gradient)[0] for gradient in gradients])))
