"""Heavy-ball descent on activities, all layers at once, its step and momentum from the spectrum of the activity Hessian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pcexp.inference.base import AbstractInference, Equilibrium
from pcexp.inference.steps import Point, stepped
from pcexp.model.network import Activities
from pcexp.model.per_sample import PerSample, inner, ratio, scaled
from pcexp.problem import Form, InferenceProblem
from pcexp.theory.activity_hessian import extreme_eigenvalues


class _Memory(NamedTuple):
    """The last move and gradient, and the extreme eigenvalues that step and momentum are taken from."""

    move: Activities
    gradient: Activities
    smallest: PerSample
    largest: PerSample


class Momentum(AbstractInference):
    """Heavy ball z_{t+1} = z_t - beta dF_b/dz + mu (z_t - z_{t-1}) from the forward pass (Polak 1964).

    beta = 4 / (sqrt(Lmax) + sqrt(Lmin))^2 and mu = ((sqrt(Lmax) - sqrt(Lmin)) / (sqrt(Lmax) + sqrt(Lmin)))^2 are each sample's
    own, from the extreme eigenvalues of its activity Hessian at the forward pass (`extreme_eigenvalues`, `n_eigen_steps`
    products each). The curvature of a nonlinear network changes on the way: where a move meets more than Lmax, that
    becomes Lmax. `activity_lr` (per sample) and `momentum` replace what they name, and stay.
    """

    max_steps: int
    form: Form = "deviations"
    tol: float | None = None
    energy_tol: float | None = None
    n_eigen_steps: int = 16
    activity_lr: float | None = None
    momentum: float | None = None

    def solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None = None) -> Equilibrium:
        network = problem.network
        if self._estimates:
            smallest, largest = extreme_eigenvalues(problem, self.n_eigen_steps)
        else:
            smallest = largest = jnp.ones_like(problem.y[0])

        def step(at: Point, last: _Memory) -> tuple[Activities, _Memory]:
            largest = last.largest
            if self._estimates:
                change = jax.tree.map(jnp.subtract, at.gradient, last.gradient)
                met = ratio(inner(network, change, change), inner(network, last.move, last.move))
                largest = jnp.maximum(largest, jnp.sqrt(met))
            low, high = jnp.sqrt(last.smallest), jnp.sqrt(largest)
            beta, mu = 4 / jnp.square(high + low), jnp.square((high - low) / (high + low))
            beta = beta if self.activity_lr is None else jnp.full_like(beta, self.activity_lr)
            mu = mu if self.momentum is None else jnp.full_like(mu, self.momentum)
            move = jax.tree.map(jnp.subtract, scaled(network, mu, last.move), scaled(network, beta, at.gradient))
            return jax.tree.map(jnp.add, at.hidden, move), _Memory(move, at.gradient, last.smallest, largest)

        nothing = jax.tree.map(jnp.zeros_like, problem.start(self.form))
        return stepped(self, problem, step, _Memory(nothing, nothing, smallest, largest))[0]

    def forward_passes(self) -> float:
        # A product with the Hessian is the tangent of a gradient; one with the inverse a linear pass down and one up.
        return 2.0 * (self.max_steps + 1) + (4.0 * self.n_eigen_steps + 3.0 if self._estimates else 0.0)

    @property
    def _estimates(self) -> bool:
        return self.activity_lr is None or self.momentum is None
