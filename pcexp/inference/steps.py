"""The loop of the solvers that move the free variables step by step until a tolerance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pcexp.inference.base import ENERGY, GIVEN_UP, STEPS, TOLERANCE, Equilibrium, root_mean_square, stopped
from pcexp.model.network import Activities
from pcexp.problem import Form, InferenceProblem


class Point(NamedTuple):
    """Where a solve is: its free variables, the prediction errors there, and the per-sample gradient dF_b/dz."""

    hidden: Activities
    errors: Activities
    gradient: Activities
    energy: Float[Array, ""]


def point_at(problem: InferenceProblem, form: Form, hidden: Activities) -> Point:
    """The point at free variables, with its energy summed over the batch."""
    errors, gradient = problem.errors_and_gradient(form, hidden)
    return Point(hidden, errors, gradient, problem.summed_energy(form, hidden, errors))


class _Fall(NamedTuple):
    """Lowest energy met so far, and what it was when the energy was last looked at."""

    lowest: Float[Array, ""]
    before: Float[Array, ""]

    def seen(self, energy: Float[Array, ""], n_steps: Int[Array, ""], tol: float | Array) -> tuple["_Fall", Array]:
        """With one more energy, and whether the steps since the last look lowered it by less than that fraction.

        The lowest, because heavy ball and Adam may climb on their way. Looks at 64, 128, 256, ... steps, because what one
        step gains says how small the step is: that a solve gains nothing in as many steps as it took to come so far means
        that it stands still, whatever the step. An energy that is not finite is no lower one: divergence ends here too.
        """
        lowest = jnp.fmin(self.lowest, energy)
        doubled = (n_steps & (n_steps - 1)) == 0
        flat = doubled & (n_steps >= 64) & (self.before - lowest <= tol * self.before)
        return _Fall(lowest, jnp.where(doubled, lowest, self.before)), flat


Step = Callable[[Point, Any], tuple[Activities, Any]]
GivenUp = Callable[[Any], Bool[Array, ""]]
Accepted = Callable[[Point, Any], tuple[Point, Any]]


def stepped(
    solver: Any,
    problem: InferenceProblem,
    step: Step,
    memory: Any,
    *,
    given_up: GivenUp | None = None,
    accepted: Accepted = lambda at, memory: (at, memory),
) -> tuple[Equilibrium, Any]:
    """Where step(point, memory) -> (hidden, memory) leads from the forward pass, and the memory it ends with.

    A solve ends at the first point whose residual is not above the solver's `tol`, or where the energy has stopped falling
    (its `energy_tol`), or where a step leaves a memory that is `given_up`: that step is not taken. Where none of them is
    given, a step pays only for what it uses of its point. What a step leads to is taken as `accepted` says, with the memory of
    it, and the end of a solve too.
    """
    form, max_steps, tol, energy_tol = solver.form, solver.max_steps, solver.tol, solver.energy_tol
    start = problem.start(form)

    def ended(hidden: Activities, memory: Any, n_steps: Array, by: Array | int) -> tuple[Equilibrium, Any]:
        at, memory = accepted(point_at(problem, form, hidden), memory)
        return stopped(problem, form, at.hidden, n_steps=n_steps, tol=tol, by=by), memory

    if tol is None and energy_tol is None and given_up is None:

        def fixed(_: Array, state: tuple[Activities, Any]) -> tuple[Activities, Any]:
            hidden, memory = state
            return step(*accepted(point_at(problem, form, hidden), memory))

        hidden, memory = lax.fori_loop(0, max_steps, fixed, (start, memory))
        return ended(hidden, memory, jnp.array(max_steps), STEPS)

    State = tuple[Activities, Any, _Fall | None, Array, Array]

    def unfinished(state: State) -> Array:
        *_, n_steps, by = state
        return (n_steps < max_steps) & (by == STEPS)

    def moved(state: State) -> State:
        hidden, memory, fall, n_steps, by = state
        at, memory = accepted(point_at(problem, form, hidden), memory)
        new, memory = step(at, memory)
        if given_up is not None:
            by = jnp.where(given_up(memory), GIVEN_UP, by)
        if tol is not None:
            # Not `~(residual > tol)`: NaN would end the loop as if it had arrived.
            by = jnp.where(root_mean_square(at.gradient) <= tol, TOLERANCE, by)
        if fall is not None:
            fall, flat = fall.seen(at.energy, n_steps, energy_tol)
            by = jnp.where(flat & (by == STEPS), ENERGY, by)
        going = by == STEPS
        hidden = jax.tree.map(lambda old, new: jnp.where(going, new, old), at.hidden, new)
        return hidden, memory, fall, n_steps + going, by

    infinite = jnp.full((), jnp.inf, start[0].dtype)
    fall = None if energy_tol is None else _Fall(infinite, infinite)
    state = (start, memory, fall, jnp.array(0), jnp.array(STEPS))
    hidden, memory, _, n_steps, by = lax.while_loop(unfinished, moved, state)
    return ended(hidden, memory, n_steps, by)
