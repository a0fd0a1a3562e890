"""Heavy-ball descent on activities, all layers at once, its step and momentum from the spectrum of the activity Hessian."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from pcexp.inference.base import AbstractInference, Equilibrium, not_above
from pcexp.inference.steps import Point, stepped
from pcexp.model.network import Activities
from pcexp.model.per_sample import PerSample, chosen, inner, ratio, scaled
from pcexp.problem import Form, InferenceProblem
from pcexp.theory.activity_hessian import extreme_eigenvalues


class _Memory(NamedTuple):
    """Where the last step started and its energies, the move since, and the spectrum that step and momentum are taken from."""

    last: Point
    energies: PerSample
    move: Activities
    from_rest: Bool[Array, " batch"]
    smallest: PerSample
    largest: PerSample


class Momentum(AbstractInference):
    """Heavy ball z_{t+1} = z_t - beta dF_b/dz + mu (z_t - z_{t-1}) from the forward pass (Polak 1964).

    beta = 4 / (sqrt(Lmax) + sqrt(Lmin))^2 and mu = ((sqrt(Lmax) - sqrt(Lmin)) / (sqrt(Lmax) + sqrt(Lmin)))^2 are each sample's
    own, from the extreme eigenvalues of its activity Hessian at the forward pass (`extreme_eigenvalues`, `n_eigen_steps`
    products each). The curvature of a nonlinear network changes on the way: where a move meets more than Lmax, that
    becomes Lmax. `momentum` (mu) replaces what it names, and stays.

    No step raises a sample's energy: where one would, the sample is at rest where it was, and where one from rest would, Lmax
    doubles. With an `activity_lr` (beta, per sample) steps are taken whatever they do, and how a solve stopped says that it rose.
    """

    max_steps: int
    form: Form = "deviations"
    tol: float | None = None
    energy_tol: float | None = None
    n_eigen_steps: int = 16
    activity_lr: float | None = None
    momentum: float | None = None

    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        network = problem.network
        smallest = largest = jnp.ones_like(problem.y[0])
        if self._estimates:
            smallest, largest = extreme_eigenvalues(problem, self.n_eigen_steps)

        def accepted(at: Point, memory: _Memory) -> tuple[Point, _Memory]:
            return self._accepted(problem, at, memory) if self._estimates else (at, memory)

        def step(at: Point, memory: _Memory) -> tuple[Activities, _Memory]:
            low, high = jnp.sqrt(memory.smallest), jnp.sqrt(memory.largest)
            beta, mu = 4 / jnp.square(high + low), jnp.square((high - low) / (high + low))
            beta = beta if self.activity_lr is None else jnp.full_like(beta, self.activity_lr)
            mu = mu if self.momentum is None else jnp.full_like(mu, self.momentum)
            move = jax.tree.map(jnp.subtract, scaled(network, mu, memory.move), scaled(network, beta, at.gradient))
            from_rest = inner(network, memory.move, memory.move) == 0
            return jax.tree.map(jnp.add, at.hidden, move), memory._replace(move=move, from_rest=from_rest)

        start = problem.start(self.form)
        at = jax.tree.map(jnp.zeros_like, Point(start, problem.errors(self.form, start), start, jnp.sum(smallest)))
        anything = jnp.full_like(smallest, jnp.inf)
        memory = _Memory(at, anything, at.hidden, jnp.zeros_like(anything, bool), smallest, largest)
        return stepped(self, problem, step, memory, accepted=accepted)[0]

    def _accepted(self, problem: InferenceProblem, at: Point, memory: _Memory) -> tuple[Point, _Memory]:
        """Samples at a point, with the curvature that their move met; where it raised their energy, at rest where they were."""
        network, last = problem.network, memory.last
        change = jax.tree.map(jnp.subtract, at.gradient, last.gradient)
        met = jnp.sqrt(ratio(inner(network, change, change), inner(network, memory.move, memory.move)))
        largest = jnp.maximum(memory.largest, jnp.where(jnp.isfinite(met), met, 0))
        if self.activity_lr is not None:
            return at, memory._replace(last=at, largest=largest)
        energies = problem.energies(self.form, at.hidden, at.errors)
        falls = not_above(energies, memory.energies)
        energies = jnp.where(falls, energies, memory.energies)
        kept = functools.partial(chosen, network, falls)
        at = Point(
            hidden=kept(at.hidden, last.hidden),
            errors=kept(at.errors, last.errors),
            gradient=kept(at.gradient, last.gradient),
            energy=jnp.sum(energies),
        )
        move = kept(memory.move, jax.tree.map(jnp.zeros_like, memory.move))
        largest = jnp.where(~falls & memory.from_rest, 2 * largest, largest)
        return at, memory._replace(last=at, energies=energies, move=move, largest=largest)

    def forward_passes(self) -> float:
        # A product with the Hessian is the tangent of a gradient; one with the inverse a linear pass down and one up.
        return 2.0 * (self.max_steps + 1) + (4.0 * self.n_eigen_steps + 3.0 if self._estimates else 0.0)

    @property
    def _estimates(self) -> bool:
        return self.activity_lr is None or self.momentum is None
