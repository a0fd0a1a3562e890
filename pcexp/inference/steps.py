"""The loop of the solvers that move the free variables step by step until a tolerance."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pcexp.inference.base import Equilibrium, Form, InferenceProblem, root_mean_square
from pcexp.network import Activities


def stepped(
    problem: InferenceProblem,
    form: Form,
    step: Callable[[Activities, Activities, Any], tuple[Activities, Any]],
    memory: Any,
    *,
    max_steps: int,
    tol: float | Float[Array, ""] | None,
) -> tuple[Equilibrium, Any]:
    """Where step(hidden, dF_b/dz, memory) -> (hidden, memory) leads from the forward pass, and the memory it ends with.

    With `tol` the loop ends at the first residual that is not above it, and the gradient that the residual is taken of is
    the one that the next step gets: none is evaluated twice. Without, a step that does not use its gradient pays none.
    """

    def gradient_at(hidden: Activities) -> Activities:
        return problem.energy_and_gradient(form, hidden)[1]

    start = problem.start(form)
    if tol is None:

        def fixed(_: Array, state: tuple[Activities, Any]) -> tuple[Activities, Any]:
            hidden, memory = state
            return step(hidden, gradient_at(hidden), memory)

        hidden, memory = lax.fori_loop(0, max_steps, fixed, (start, memory))
        gradient, n_steps = gradient_at(hidden), jnp.array(max_steps)
    else:
        State = tuple[Activities, Activities, Any, Array]

        def unfinished(state: State) -> Array:
            _, gradient, _, n_steps = state
            # Not `residual > tol`: NaN would end the loop as if it had arrived.
            return (n_steps < max_steps) & ~(root_mean_square(gradient) <= tol)

        def moved(state: State) -> State:
            hidden, gradient, memory, n_steps = state
            hidden, memory = step(hidden, gradient, memory)
            return hidden, gradient_at(hidden), memory, n_steps + 1

        state = (start, gradient_at(start), memory, jnp.array(0))
        hidden, gradient, memory, n_steps = lax.while_loop(unfinished, moved, state)
    residual = root_mean_square(gradient)
    equilibrium = Equilibrium(
        activities=problem.activities(form, hidden),
        errors=problem.errors(form, hidden),
        n_steps=n_steps,
        residual=residual,
        converged=residual <= (0.0 if tol is None else tol),
        halvings=jnp.array(0),
    )
    return equilibrium, memory
