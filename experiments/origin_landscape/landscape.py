"""Planes through the origin of weight space, and the loss and F* on them; in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.energy import loss
from pcexp.model.network import Network
from pcexp.theory.equilibrated import equilibrated_energy
from pcexp.theory.hessian import vectorised, zero_output_equilibrated_hessian
from pcexp.theory.saddles import zero_rank

Plane = Float[np.ndarray, "2 n"]

SAME = 1e-9
"""Eigenvalues closer than this, of the largest, are one."""


def plane(network: Network, x: np.ndarray, y: np.ndarray) -> Plane:
    """Unit vectors of the plane: both weights where there are two, else eigenvectors of F*'s Hessian at the origin.

    Of the lowest eigenvalue the one nearest to the axis of the last weight, of the highest that nearest to the first's.
    """
    h = _hessian(network, x, y)
    axes = np.eye(len(h))
    if len(h) == 2:
        return axes
    return np.stack([_nearest(_eigenspace(h, 0), axes[-1]), _nearest(_eigenspace(h, -1), axes[0])])


def generic_plane(network: Network, x: np.ndarray, y: np.ndarray, *, seed: int) -> Plane:
    """The same with the eigenvector of the highest eigenvalue nearest to a random direction."""
    h = _hessian(network, x, y)
    if len(h) == 2:
        return np.eye(2)
    drawn = np.random.default_rng(seed).standard_normal(len(h))
    return np.stack([_nearest(_eigenspace(h, 0), np.eye(len(h))[-1]), _nearest(_eigenspace(h, -1), drawn)])


def landscape(
    network: Network, axes: Plane, x: np.ndarray, y: np.ndarray, *, grid: int, extent: float
) -> dict[str, np.ndarray]:
    """Loss and F* at a p_1 + b p_2, rows by b and columns by a, both from -extent to extent; and their value at the origin."""
    with jax.enable_x64(True):
        network, inputs, targets = _in_float64(network, x, y)
        steps = jnp.linspace(-extent, extent, grid)
        found = _on_grid(network, jnp.asarray(axes), steps, inputs, targets)
        start = float(np.sum(np.square(np.asarray(targets))) / (2 * y.shape[1]))
        values = {name: np.asarray(value) for name, value in zip(("loss", "equilibrated"), found, strict=True)}
    return values | {"at_origin": np.full(grid, start)}


@eqx.filter_jit
def _on_grid(
    network: Network, axes: Array, steps: Array, x: Array, y: Array
) -> tuple[Float[Array, "grid grid"], Float[Array, "grid grid"]]:
    _, unravel = vectorised(network)

    def at(b: Array, a: Array) -> tuple[Array, Array]:
        there = unravel(a * axes[0] + b * axes[1])
        return loss(there, x, y), equilibrated_energy(there, x, y)

    return jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))(steps, steps)


def _hessian(network: Network, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n n"]:
    with jax.enable_x64(True):
        network, inputs, targets = _in_float64(network, x, y)
        return np.asarray(zero_output_equilibrated_hessian(zero_rank(network), inputs, targets))


def _in_float64(network: Network, x: np.ndarray, y: np.ndarray) -> tuple[Network, Array, Array]:
    return jax.tree.map(lambda w: w.astype(jnp.float64), network), jnp.asarray(x, float), jnp.asarray(y, float)


def _eigenspace(h: np.ndarray, which: int) -> np.ndarray:
    """Unit vectors that span the eigenspace of the lowest (0) or the highest (-1) eigenvalue."""
    values, vectors = np.linalg.eigh(h)
    return vectors[:, np.abs(values - values[which]) <= SAME * np.max(np.abs(values))]


def _nearest(space: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The unit vector of a space that is nearest to a direction: independent of the basis that the space came with."""
    projected = space @ (space.T @ direction)
    return projected / np.linalg.norm(projected)
