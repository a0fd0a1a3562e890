"""Descent in the error variables, where the Hessian is close to the identity."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray

from pcexp.energy import weighted
from pcexp.inference.base import (
    ENERGY,
    STEPS,
    TOLERANCE,
    AbstractInference,
    Equilibrium,
    not_above,
    root_mean_square,
    stopped,
)
from pcexp.model.network import Activities, Network
from pcexp.model.output import Squared
from pcexp.model.per_sample import PerSample, chosen, inner, ratio, scaled
from pcexp.problem import InferenceProblem, Output, perturbed_pass
from pcexp.theory.activity_hessian import Product, largest, output_product


class _Point(NamedTuple):
    """Where a search is: hidden errors, what they leave, and the energy f_b and its gradient df_b/de there."""

    errors: Activities
    output: Output
    deviations: Activities
    gradient: Activities
    energy: PerSample


class _Search(NamedTuple):
    point: _Point
    direction: Activities
    step: PerSample
    n_steps: Int[Array, ""]
    by: Int[Array, ""]


class ErrorDescent(AbstractInference):
    """Minimum of f_b(e) = 1/2 sum_{l<=H} ||e_l||^2 + 1/2 ||e_L(e)||^2 over the hidden errors e: the same equilibria as in z.

    The activities are rebuilt by a perturbed forward pass, so df_b/de_l = e_l - G_l^T e_L takes one pass up and one down
    and reaches all layers at once. For linear networks the Hessian is I + G^T G, whose spectrum is that of the rescaling
    S (theorem 3.1) and ones: near 1 for muPC, where either method ends after a few steps at any depth.

    `method`: "descent" with the step 2 / (2 + ||G||^2), ||G|| at the forward pass from `n_eigen_steps` products; or
    "conjugate_gradients" (Polak-Ribiere, restarted where it would turn negative) with the step to the minimum of the
    quadratic along its direction, from a Hessian product that costs as much as a gradient: on a linear network it ends
    within d_out steps. Steps are each sample's own, and are halved where they would raise its energy.

    `tol` ends a solve on the residual in z, the unit of all solvers. `energy_tol` ends it when a step lowers the batch's
    energy by less than that fraction, which does not count as converged: at the kinks of relu no gradient gets small.
    """

    max_steps: int
    method: Literal["descent", "conjugate_gradients"] = "conjugate_gradients"
    tol: float | None = None
    energy_tol: float | None = None
    n_eigen_steps: int = 8

    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        def unfinished(search: _Search) -> Array:
            return (search.n_steps < self.max_steps) & (search.by == STEPS)

        search = lax.while_loop(unfinished, lambda search: self._moved(problem, search), self._start(problem))
        errors = (*search.point.errors, search.point.output)  # not by subtraction: no round-off of the deviations
        at = search.point.deviations
        return stopped(problem, "deviations", at, n_steps=search.n_steps, tol=self.tol, by=search.by, errors=errors)

    def check(self, network: Network) -> None:
        if not isinstance(network.output, Squared):
            raise ValueError(
                f"inference=error_descent descends squared errors, and this network has output={network.output.name}: choose "
                "inference=momentum, sequential, gradient_descent, adam or ode"
            )

    def forward_passes(self) -> float:
        first, each = (2.0 * self.n_eigen_steps, 2.0) if self.method == "descent" else (0.0, 4.0)
        return first + each * (self.max_steps + 1) + 2.0

    def _start(self, problem: InferenceProblem) -> _Search:
        start = problem.start("deviations")
        if problem.initial is not None:
            start = problem.errors("deviations", start)[:-1]
        point, hessian = self._evaluated(problem, start)
        down = jax.tree.map(jnp.negative, point.gradient)
        if hessian is None:
            still = jax.tree.map(jnp.zeros_like, start)
            _, high = largest(problem, output_product(problem, still), still, self.n_eigen_steps)
            hidden = problem.network.precisions and problem.network.precisions[:-1]
            step = 2 / (2 + high) if not hidden else 2 / (min(hidden) + max(hidden) + high)
        else:
            step = _longest_step(problem, point, down, hessian)
        return _Search(point, down, step, jnp.array(0), self._met(problem, point))

    def _moved(self, problem: InferenceProblem, search: _Search) -> _Search:
        network, last, direction = problem.network, search.point, search.direction
        step = scaled(network, search.step, direction)
        trial, hessian = self._evaluated(problem, jax.tree.map(jnp.add, last.errors, step))
        # Round-off of a sum is allowed: near the minimum a good step lowers the energy by less than that.
        lowers = not_above(trial.energy, last.energy)
        point = _Point(
            errors=chosen(network, lowers, trial.errors, last.errors),
            output=jnp.where(lowers, trial.output, last.output),
            deviations=chosen(network, lowers, trial.deviations, last.deviations),
            gradient=chosen(network, lowers, trial.gradient, last.gradient),
            energy=jnp.where(lowers, trial.energy, last.energy),
        )
        by = self._met(problem, point)
        if self.energy_tol is not None:
            # A step that was too long counts with what it could have gained at most.
            gain = jnp.where(lowers, last.energy - trial.energy, -inner(network, step, last.gradient))
            flat = jnp.sum(gain) <= self.energy_tol * jnp.sum(last.energy)
            by = jnp.where(flat & (by == STEPS), ENERGY, by)
        turned, longest = jax.tree.map(jnp.negative, point.gradient), search.step
        if hessian is not None:
            change = jax.tree.map(jnp.subtract, point.gradient, last.gradient)
            beta = ratio(inner(network, point.gradient, change), inner(network, last.gradient, last.gradient))
            conjugate = jax.tree.map(jnp.add, turned, scaled(network, jnp.maximum(beta, 0), direction))
            turned = chosen(network, inner(network, conjugate, point.gradient) < 0, conjugate, turned)
            longest = _longest_step(problem, point, turned, hessian)
        return _Search(
            point=point,
            direction=chosen(network, lowers, turned, direction),
            step=jnp.where(lowers, longest, search.step / 2),
            n_steps=search.n_steps + 1,
            by=by,
        )

    def _evaluated(self, problem: InferenceProblem, errors: Activities) -> tuple[_Point, Product | None]:
        """The point at hidden errors, and the Hessian there where the method needs it."""
        if self.method == "descent":
            return _point(problem, errors), None

        def gradient(errors: Activities) -> tuple[Activities, _Point]:
            point = _point(problem, errors)
            return point.gradient, point

        _, hessian, point = jax.linearize(gradient, errors, has_aux=True)
        return point, hessian

    def _met(self, problem: InferenceProblem, point: _Point) -> Int[Array, ""]:
        """TOLERANCE where the residual in z meets `tol`, looked at only where the gradient in e does, which costs nothing."""
        if self.tol is None:
            return jnp.array(STEPS)
        tol = self.tol
        met = lax.cond(
            root_mean_square(point.gradient) <= tol,
            lambda: root_mean_square(problem.errors_and_gradient("deviations", point.deviations)[1]) <= tol,
            lambda: jnp.array(False),
        )
        return jnp.where(met, TOLERANCE, STEPS)


def _point(problem: InferenceProblem, errors: Activities) -> _Point:
    """Energy and gradient e_l + (de_L/de_l)^T e_L at hidden errors."""
    output, pull, deviations = jax.vjp(lambda e: perturbed_pass(problem, e), errors, has_aux=True)
    network = problem.network
    own, (above,) = weighted(network, errors), weighted(network, (output,), first=len(errors))
    gradient = problem.projected(jax.tree.map(jnp.add, own, pull(above)[0]))
    energy = 0.5 * (inner(network, own, errors) + jnp.sum(above * output, axis=(0, 1)))
    return _Point(errors, output, deviations, gradient, energy)


def _longest_step(problem: InferenceProblem, point: _Point, direction: Activities, hessian: Product) -> PerSample:
    """Step -<g, p> / <p, H p> to the minimum of the quadratic along p.

    Errors of the output bend H below I + G^T G, and it may turn negative: there the identity stands in for it.
    """
    network = problem.network
    unit = inner(network, weighted(network, direction), direction)
    curvature = inner(network, direction, hessian(direction))
    # The Gauss-Newton product alone, which cannot turn negative, took 171 steps where this takes 19 (tanh, H = 32).
    curvature = jnp.where(curvature > 0.05 * unit, curvature, unit)
    return ratio(-inner(network, point.gradient, direction), curvature)
