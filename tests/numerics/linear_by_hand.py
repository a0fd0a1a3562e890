"""Equilibria of linear networks in numpy from one dense system, and derivatives by complex steps: the oracle of the theory.

Everything is an analytic function of the weights (transposed, never conjugated), so Im f(w + i h) / h is the derivative to all
digits. Layers are those of by_hand; weights are one vector, layer by layer, each row by row.
"""

from collections.abc import Callable

import by_hand
import numpy as np

STEP = 1e-100


def dense_equilibrium(net, x, y, precisions=None):
    """Activities z* of every example and F*: errors are A h + c, so A^T P A h = -A^T P c, with A read off the errors."""
    widths = [len(layer.weight) for layer in net]
    p = np.repeat(np.ones(len(net)) if precisions is None else precisions, widths)
    cuts, n = np.cumsum(widths[:-1])[:-1], sum(widths[:-1])

    def errors(h, b):
        hidden = [part[:, None] for part in np.split(h, cuts)]
        return np.concatenate([e.ravel() for e in by_hand.errors(net, x[:, b : b + 1], [*hidden, y[:, b : b + 1]])])

    solutions, total = [], 0.0
    origin = errors(np.zeros(n), 0)
    a = np.stack([errors(unit, 0) - origin for unit in np.eye(n)], axis=1)
    for b in range(x.shape[1]):
        c = errors(np.zeros(n), b)
        h = np.linalg.solve(a.T @ (p[:, None] * a), -a.T @ (p * c))
        total = total + np.sum(p * (a @ h + c) ** 2)
        solutions.append(h)
    return [*np.split(np.stack(solutions, axis=1), cuts), y], total / (2 * x.shape[1])


def equilibrated_gradient(net, x, y, precisions=None):
    """Gradient of the energy with respect to the weights at z*, one vector (without biases)."""
    z, _ = dense_equilibrium(net, x, y, precisions)
    e = by_hand.errors(net, x, z)
    if precisions is not None:
        e = [p * error for p, error in zip(precisions, e, strict=True)]
    return flat(w for w, _ in by_hand.weight_gradient(net, x, z, e))


def flat(arrays):
    return np.concatenate([np.asarray(a).ravel() for a in arrays])


def moved(net, change):
    """The layers with their weights changed by a vector."""
    cuts = np.cumsum([layer.weight.size for layer in net])[:-1]
    return [
        layer._replace(weight=layer.weight + part.reshape(layer.weight.shape))
        for layer, part in zip(net, np.split(change, cuts), strict=True)
    ]


def derivative(function: Callable, net, direction) -> np.ndarray:
    """Derivative of a function of the layers along a vector of weights."""
    return np.imag(function(moved(net, 1j * STEP * direction))) / STEP


def jacobian(function: Callable, net) -> np.ndarray:
    """Derivatives of a function of the layers by every weight: a gradient, or a Hessian, of which each row is a column."""
    n = sum(layer.weight.size for layer in net)
    return np.stack([derivative(function, net, unit) for unit in np.eye(n)])
