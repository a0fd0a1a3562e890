"""Gauss-Seidel sweeps: gradient descent on activities, one layer after the other from the output down."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from pcexp.energy import batch_axes_of, weighted
from pcexp.inference.base import AbstractInference, Equilibrium
from pcexp.inference.steps import Point, stepped
from pcexp.model.network import Activities
from pcexp.model.segments import AbstractSegment
from pcexp.problem import Form, InferenceProblem


class Sequential(AbstractInference):
    """Sweeps z_l <- z_l - beta dF_b/dz_l for l = H, ..., 1, each at the z_{l+1} just updated (SeqIL, Alonso et al. 2024).

    A step is one sweep. From the forward pass the first one gives every layer an error, of order beta^(L-l), where
    simultaneous steps need H. An update of z_l changes mu_{l+1}, whose layer has had its turn, and not mu_l: so errors are
    taken once a sweep, of all layers together, and carried along. A sweep costs a forward pass and a backward pass that
    goes down layer by layer, with another product a layer where phi' is taken of one (post-activation); weights are read
    where they lie. `tol` on the residual adds one gradient of all layers a sweep.
    """

    activity_lr: float
    max_steps: int
    form: Form = "deviations"
    tol: float | None = None
    energy_tol: float | None = None

    def solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None = None) -> Equilibrium:
        def step(at: Point, memory: None) -> tuple[Activities, None]:
            return self._swept(problem, at.hidden), None

        return stepped(
            problem, self.form, step, None, max_steps=self.max_steps, tol=self.tol, energy_tol=self.energy_tol
        )[0]

    def forward_passes(self) -> float:
        return (3.0 if self.tol is None else 5.0) * self.max_steps + 2.0

    def _swept(self, problem: InferenceProblem, hidden: Activities) -> Activities:
        """Free variables after one sweep."""
        network = problem.network

        # Errors come weighted, p_l e_l: once z_l has moved by -beta g they have changed by -p_l beta g.
        rates = tuple(
            jnp.full(len(e), self.activity_lr, e.dtype) * jnp.asarray(network.precisions_of(i), e.dtype)
            for i, e in enumerate(hidden)
        )

        def layer(pulled: Array, at: tuple[AbstractSegment, Array, Array, Array]) -> tuple[Array, Array]:
            segment, below, e, rate = at
            gradient = e - pulled
            single = jax.tree.map(lambda p: p[None], segment)
            after = e - rate * gradient
            return _pulled_back(single, below[None], after[None])[0], gradient

        def one(x: Array, activities: Activities, errors: Activities) -> Activities:
            """Gradients dF_b/dz_l of one example, each taken when its layer's turn has come."""
            *hidden, output = zip(
                network.segments, network.inputs(x, activities), errors, (*rates, rates[-1]), strict=True
            )
            pulled = _pulled_back(*output[:3])[0]
            gradients = []
            for index, (segment, below, e, rate) in reversed(list(enumerate(hidden))):
                if segment.depth == 1 and index == 0:  # below it is only x: no product
                    gradient = e - pulled[None]
                elif segment.depth == 1:  # layers that are not square: no scan
                    pulled, gradient = layer(pulled, jax.tree.map(lambda leaf: leaf[0], (segment, below, e, rate)))
                    gradient = gradient[None]
                else:
                    pulled, gradient = lax.scan(layer, pulled, (segment, below, e, rate), reverse=True)
                gradients.append(gradient)
            return tuple(reversed(gradients))

        axes, _ = batch_axes_of(network)
        batched = jax.vmap(one, in_axes=(network.input_batch_axis, axes, axes), out_axes=axes[:-1])
        errors = weighted(network, problem.errors(self.form, hidden))
        gradient = problem.projected(batched(problem.x, problem.activities(self.form, hidden), errors))
        return jax.tree.map(lambda z, g: z - self.activity_lr * g, hidden, gradient)


def _pulled_back(segment: AbstractSegment, below: Array, e: Array) -> Array:
    """J^T e with J = dmu/dz at the inputs of a segment's layers."""
    _, pull = jax.vjp(segment.predict, below)
    return pull(e)[0]
