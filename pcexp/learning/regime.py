"""Where the inference of a training step stands: how long its steps are, and how much of the energy it has used up.

All of it is of one batch at the weights before the update. `regime_step` is the activity_lr times the largest eigenvalue of the
activity Hessian at the forward pass, of the sample where that is largest: plain descent is stable below 2 (only gradient descent and
heavy ball with an activity_lr have it). `regime_closed_fraction` is (F(zhat) - F(z_T)) / (F(zhat) - F0), with z_T where the rule's inference ended and
F0 the lowest energy that error descent found from the forward pass, whose residual is `regime_lowest_residual`: where that is
not small, F0 may be too high; where the gap is round-off, there is no fraction of it (NaN). `regime_stopped_by` says how the rule's inference ended, as an index of STOPPED_BY.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from pcexp.inference.base import AbstractInference
from pcexp.inference.error_descent import ErrorDescent
from pcexp.inference.gradient_descent import GradientDescent
from pcexp.inference.momentum import Momentum
from pcexp.model.network import Network
from pcexp.model.output import Squared
from pcexp.problem import InferenceProblem
from pcexp.theory.activity_hessian import hessian_product, largest

N_PRODUCTS = 32
ROUND_OFF = 1e-5
"""Of the energy, in float32, by a sum over a batch."""
LOWEST = ErrorDescent(max_steps=200, tol=1e-6, energy_tol=1e-6)
FORWARD_PASSES = LOWEST.forward_passes() + 4.0 * N_PRODUCTS
"""Of a row, at most."""


def check(network: Network) -> None:
    """Raise ValueError where F0 or the Hessian cannot be had."""
    if not isinstance(network.output, Squared):
        raise ValueError(
            f"training.regime=true: the lowest energy is found for squared errors, and this network has output={network.output.name}"
        )
    if any(getattr(segment, "forward_only", False) for segment in network.segments):
        raise ValueError("training.regime=true: with premultipliers in the forward pass only, inference has no Hessian")


def columns(problem: InferenceProblem, inference: AbstractInference, seen: Mapping[str, Array]) -> dict[str, Array]:
    """The columns of a row, of a problem and what the diagnostics say of its inference."""
    forward = dataclasses.replace(problem, initial=None)
    still, found = forward.start("deviations"), {}
    if isinstance(inference, (GradientDescent, Momentum)) and inference.activity_lr is not None:
        below, _ = largest(forward, hessian_product(forward), still, N_PRODUCTS)
        found["regime_step"] = inference.activity_lr * jnp.max(below)
    start = forward.summed_energy("deviations", still, forward.errors("deviations", still)) / problem.y.shape[-1]
    lowest = LOWEST.solve(forward)
    gap = start - lowest.energy
    return found | {
        "regime_closed_fraction": jnp.where(gap > ROUND_OFF * start, (start - seen["inference_energy"]) / gap, jnp.nan),
        "regime_lowest_residual": lowest.residual,
        "regime_stopped_by": seen["inference_stopped_by"],
    }
