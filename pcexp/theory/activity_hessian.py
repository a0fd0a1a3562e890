"""The activity Hessian H_z = d^2 F_b / dz^2 of every sample at the forward pass, by products: never a matrix.

With J0 = de/dz of the hidden layers, which a perturbed forward pass inverts, C = de_L/dz and G = C J0^-1,
H_z = J0^T P J0 + p_L C^T C = J0^T (P + p_L G^T G) J0. The curvature of phi enters H_z through the output error only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pcexp.energy import weighted
from pcexp.model.network import Activities
from pcexp.model.per_sample import PerSample, flattened, same_for_all
from pcexp.problem import InferenceProblem, perturbed_pass
from pcexp.theory.eigenpairs import largest_eigenvalue

Product = Callable[[Activities], Activities]


def hessian_product(problem: InferenceProblem) -> Product:
    """Products v -> H_z v."""
    return jax.linearize(lambda d: problem.errors_and_gradient("deviations", d)[1], _zeros(problem))[1]


def hidden_inverse_product(problem: InferenceProblem, at: Activities) -> Product:
    """Products v -> J0^-1 P^-1 J0^-T v with the inverse of H_z less its output; `at` are zeros.

    A precision of zero is taken as one: there is no inverse.
    """
    _, rebuilt = jax.linearize(lambda e: perturbed_pass(problem, e)[1], at)
    pull = jax.linear_transpose(rebuilt, at)

    def product(v: Activities) -> Activities:
        pulled = problem.projected(pull(problem.projected(v))[0])
        return problem.projected(rebuilt(weighted(problem.network, pulled, of=lambda p: 1 / np.where(p > 0, p, 1))))

    return product


def output_product(problem: InferenceProblem, at: Activities) -> Product:
    """Products v -> p_L G^T G v, the Hessian in error variables less P; `at` are zeros."""
    _, tangent = jax.linearize(lambda e: perturbed_pass(problem, e)[0], at)
    pull = jax.linear_transpose(tangent, at)

    def product(v: Activities) -> Activities:
        return problem.projected(pull(weighted(problem.network, (tangent(v),), first=len(at))[0])[0])

    return product


def largest(problem: InferenceProblem, product: Product, like: Activities, steps: int) -> tuple[PerSample, PerSample]:
    """Largest eigenvalue of a symmetric product of every sample: Ritz value (from below), and with its residual."""
    network = problem.network
    columns, tree = flattened(network, problem.projected(same_for_all(network, like)))
    return largest_eigenvalue(lambda v: flattened(network, product(tree(v)))[0], columns, steps=steps)


def extreme_eigenvalues(problem: InferenceProblem, n_products: int) -> tuple[PerSample, PerSample]:
    """Smallest and largest eigenvalue of every sample's activity Hessian H_z at the forward pass, by Lanczos.

    The largest from products H_z v, its residual added. The smallest as 1 / ||P^-1/2 J0^-1||^2: H_z is not below J0^T P J0, and
    differs from it by a rank of d_out. From the inverse a few products resolve it at any condition number; from H_z they could not.
    """
    start = _zeros(problem)
    _, high = largest(problem, hessian_product(problem), start, n_products)
    # One after the other: XLA:CPU (jax 0.10.2, two cores) ran the two loops at once, and each waited for the other's threads.
    after = jax.tree.map(lambda leaf: leaf + 0 * jnp.nan_to_num(jnp.max(high)), start)
    inverse, _ = largest(problem, hidden_inverse_product(problem, after), after, n_products)
    low = 1 / inverse
    return low, jnp.maximum(high, low)


def _zeros(problem: InferenceProblem) -> Activities:
    return jax.tree.map(jnp.zeros_like, problem.at.activities[:-1])
