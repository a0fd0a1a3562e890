"""Heavy-ball descent on activities, all layers at once, its step and momentum from the spectrum of the activity Hessian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.inference.base import AbstractInference, Equilibrium, Form, InferenceProblem
from pcexp.inference.error_descent import perturbed_pass
from pcexp.inference.per_sample import inner, largest_eigenvalue, ratio, scaled
from pcexp.inference.steps import Point, stepped
from pcexp.model.network import Activities

PerSample = Float[Array, " batch"]


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

    def __check_init__(self) -> None:
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, or null, not {self.momentum}")

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
            beta, mu = self._settings(last.smallest, largest)
            move = jax.tree.map(jnp.subtract, scaled(network, mu, last.move), scaled(network, beta, at.gradient))
            return jax.tree.map(jnp.add, at.hidden, move), _Memory(move, at.gradient, last.smallest, largest)

        nothing = jax.tree.map(jnp.zeros_like, problem.start(self.form))
        memory = _Memory(nothing, nothing, smallest, largest)
        return stepped(
            problem, self.form, step, memory, max_steps=self.max_steps, tol=self.tol, energy_tol=self.energy_tol
        )[0]

    def forward_passes(self) -> float:
        # A product with the Hessian is the tangent of a gradient; one with the inverse a linear pass down and one up.
        return 2.0 * (self.max_steps + 1) + (4.0 * self.n_eigen_steps + 3.0 if self._estimates else 0.0)

    @property
    def _estimates(self) -> bool:
        return self.activity_lr is None or self.momentum is None

    def _settings(self, smallest: PerSample, largest: PerSample) -> tuple[PerSample, PerSample]:
        """Step beta and momentum mu of every sample."""
        low, high = jnp.sqrt(smallest), jnp.sqrt(largest)
        beta, mu = 4 / jnp.square(high + low), jnp.square((high - low) / (high + low))
        return (
            beta if self.activity_lr is None else jnp.full_like(beta, self.activity_lr),
            mu if self.momentum is None else jnp.full_like(mu, self.momentum),
        )


def extreme_eigenvalues(problem: InferenceProblem, n_products: int) -> tuple[PerSample, PerSample]:
    """Smallest and largest eigenvalue of every sample's activity Hessian H_z at the forward pass, by Lanczos.

    The largest from products H_z v, its residual added. The smallest as 1 / ||J0^-1||^2 with J0 = de/dz of the hidden
    layers, whose inverse is a perturbed forward pass: H_z = J0^T (I + G^T G) J0 is not below J0^T J0, and differs from it by
    a rank of d_out. From the inverse a few products resolve it at any condition number; from H_z they could not.
    (Without the curvature of phi, which enters H_z through the output error only and may make it indefinite.)
    """
    network, start = problem.network, problem.start("deviations")

    def gradient(deviations: Activities) -> Activities:
        return problem.energy_and_gradient("deviations", deviations)[1]

    _, hessian = jax.linearize(gradient, start)
    _, largest = largest_eigenvalue(network, hessian, start, n_products)
    # One after the other: XLA:CPU (jax 0.10.2, two cores) ran the two loops at once, and each waited for the other's threads.
    after = jax.tree.map(lambda leaf: leaf + 0 * jnp.nan_to_num(jnp.max(largest)), start)
    _, rebuilt = jax.linearize(lambda e: perturbed_pass(problem, e)[1], after)
    pull = jax.linear_transpose(rebuilt, start)
    inverse, _ = largest_eigenvalue(network, lambda v: rebuilt(pull(v)[0]), after, n_products)
    smallest = 1 / inverse
    return smallest, jnp.maximum(largest, smallest)
