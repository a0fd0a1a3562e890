"""Predictive coding written out in numpy float64, one layer after another, from the equations: the oracle of these tests.

Nothing of pcexp is used but the weights and biases of a network. Which layer has a skip, which activation and which
premultiplier is decided here. Activities are lists z_1..z_L of arrays (width, batch); z_L = y.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Vectors = list[np.ndarray]


class Layer(NamedTuple):
    """mu(z) = after(a W before(z) + b) + tau z."""

    weight: np.ndarray
    bias: np.ndarray
    premultiplier: float
    skip: bool
    before: str
    after: str


def premultipliers(parameterisation: str, d_in: int, width: int, depth: int, skips: bool) -> list[float]:
    """a_1..a_L (thesis Table 5.1)."""
    if parameterisation in ("NTK", "MuPC"):
        hidden = (width * depth) ** -0.5 if skips else width**-0.5
        return [d_in**-0.5, *[hidden] * (depth - 2), 1 / width if parameterisation == "MuPC" else width**-0.5]
    return [1.0] * depth


def layers(network: Any, *, activation: str, form: str, skips: bool, scales: Sequence[float]) -> list[Layer]:
    """Layers with the weights and biases of `network`: phi never acts on x, the output is linear, the ends have no skip."""
    depth = len(scales)
    weights = [np.asarray(w, np.float64) for segment in network.segments for w in segment.weight]
    biases: list[Any] = [
        b for segment in network.segments for b in ([0.0] * segment.depth if segment.bias is None else segment.bias)
    ]
    assert len(weights) == len(biases) == depth
    return [
        Layer(
            weight,
            np.asarray(bias, np.float64) * np.ones(len(weight)),
            scale,
            skips and 1 < index < depth,
            activation if form == "pre" and index > 1 else "linear",
            activation if form == "post" and index < depth else "linear",
        )
        for index, (weight, bias, scale) in enumerate(zip(weights, biases, scales, strict=True), start=1)
    ]


def unstacked(activities: Any) -> Vectors:
    """One array a layer from pcexp's one array a segment."""
    return [np.asarray(layer, np.float64) for segment in activities for layer in segment]


def stacked(network: Any, hidden: Vectors) -> tuple[np.ndarray, ...]:
    """One array a segment, the output's left out, from one array a hidden layer."""
    remaining = iter(hidden)
    return tuple(np.stack([next(remaining) for _ in range(segment.depth)]) for segment in network.segments[:-1])


def phi(name: str, u: np.ndarray) -> np.ndarray:
    return {"linear": lambda u: u, "tanh": np.tanh, "relu": lambda u: np.where(u > 0, u, 0.0)}[name](u)


def slope(name: str, u: np.ndarray) -> np.ndarray:
    return {"linear": np.ones_like, "tanh": lambda u: np.cosh(u) ** -2, "relu": lambda u: np.where(u > 0, 1.0, 0.0)}[
        name
    ](u)


def increment(name: str, u: np.ndarray, d: np.ndarray) -> np.ndarray:
    """phi(u + d) - phi(u) without cancellation, by other formulae than pcexp's."""
    if name == "tanh":
        return np.sinh(d) / (np.cosh(u) * np.cosh(u + d))
    if name == "relu":
        both, switched_on, switched_off = (u > 0) & (u + d > 0), (u <= 0) & (u + d > 0), (u > 0) & (u + d <= 0)
        return np.where(both, d, 0.0) + np.where(switched_on, u + d, 0.0) - np.where(switched_off, u, 0.0)
    return d


def linear_map(layer: Layer, z: np.ndarray) -> np.ndarray:
    return layer.premultiplier * layer.weight @ phi(layer.before, z) + layer.bias[:, None]


def prediction(layer: Layer, z: np.ndarray) -> np.ndarray:
    return phi(layer.after, linear_map(layer, z)) + (z if layer.skip else 0.0)


def forward(net: list[Layer], x: np.ndarray) -> Vectors:
    """zhat_1..zhat_L."""
    activities = []
    for layer in net:
        x = prediction(layer, x)
        activities.append(x)
    return activities


def errors(net: list[Layer], x: np.ndarray, activities: Vectors) -> Vectors:
    """e_l = z_l - mu_l(z_{l-1})."""
    return [z - prediction(layer, last) for layer, last, z in zip(net, [x, *activities[:-1]], activities, strict=True)]


def energy(net: list[Layer], x: np.ndarray, activities: Vectors) -> float:
    """F = 1/(2B) sum_b sum_l ||e_l||^2, term by term."""
    total, batch = 0.0, x.shape[1]
    for e in errors(net, x, activities):
        for b in range(batch):
            for i in range(len(e)):
                total += e[i, b] ** 2
    return total / (2 * batch)


def pulled_back(layer: Layer, z: np.ndarray, e: np.ndarray) -> np.ndarray:
    """J^T e with J = dmu/dz at z."""
    delta = e * slope(layer.after, linear_map(layer, z))
    return slope(layer.before, z) * (layer.premultiplier * layer.weight.T @ delta) + (e if layer.skip else 0.0)


def activity_gradient(net: list[Layer], x: np.ndarray, activities: Vectors) -> Vectors:
    """dF_b/dz_l = e_l - J_{l+1}^T e_{l+1} of the hidden layers, per sample."""
    e = errors(net, x, activities)
    return [e[i] - pulled_back(net[i + 1], activities[i], e[i + 1]) for i in range(len(net) - 1)]


def weight_gradient(
    net: list[Layer], x: np.ndarray, activities: Vectors, e: Vectors | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(dF/dW_l, dF/db_l) at fixed activities; `e` where errors are known better than by subtraction."""
    gradients = []
    for layer, z, error in zip(net, [x, *activities[:-1]], e or errors(net, x, activities), strict=True):
        delta = error * slope(layer.after, linear_map(layer, z)) / x.shape[1]
        gradients.append((-layer.premultiplier * delta @ phi(layer.before, z).T, -delta.sum(axis=1)))
    return gradients


def loss_gradient(net: list[Layer], x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Gradient of the loss 1/(2B) sum_b ||y - f(x)||^2 by the chain rule: backpropagation."""
    activities = forward(net, x)
    e = y - activities[-1]
    deltas = [e]
    for layer, z in zip(net[:0:-1], activities[-2::-1], strict=True):
        e = pulled_back(layer, z, e)
        deltas.append(e)
    return weight_gradient(net, x, activities, deltas[::-1])


def descended(
    net: list[Layer], x: np.ndarray, y: np.ndarray, beta: float, steps: int, *, start: Vectors | None = None
) -> Vectors:
    """Activities after gradient descent z <- z - beta dF_b/dz from the forward pass."""
    activities = start or [*forward(net, x)[:-1], y]
    for _ in range(steps):
        gradient = activity_gradient(net, x, activities)
        activities = [*[z - beta * g for z, g in zip(activities[:-1], gradient, strict=True)], y]
    return activities


def deviation_errors(net: list[Layer], zhat: Vectors, deviations: Vectors) -> Vectors:
    """e_l = d_l - [mu_l(zhat + d) - mu_l(zhat)], each difference without cancellation."""
    e = [deviations[0]]
    for i, layer in enumerate(net[1:]):
        d, z = deviations[i], zhat[i]
        moved = layer.premultiplier * layer.weight @ increment(layer.before, z, d)
        change = increment(layer.after, linear_map(layer, z), moved) + (d if layer.skip else 0.0)
        e.append(deviations[i + 1] - change)
    return e


def descended_deviations(
    net: list[Layer], x: np.ndarray, y: np.ndarray, beta: float, steps: int
) -> tuple[Vectors, Vectors]:
    """Activities and errors of the same descent in d = z - zhat: exact far below the round-off of z."""
    zhat = forward(net, x)
    deviations = [*[np.zeros_like(z) for z in zhat[:-1]], y - zhat[-1]]
    for _ in range(steps):
        e = deviation_errors(net, zhat, deviations)
        gradient = [e[i] - pulled_back(net[i + 1], zhat[i] + deviations[i], e[i + 1]) for i in range(len(net) - 1)]
        deviations = [*[d - beta * g for d, g in zip(deviations[:-1], gradient, strict=True)], deviations[-1]]
    return [z + d for z, d in zip(zhat, deviations, strict=True)], deviation_errors(net, zhat, deviations)


def jacobians(net: list[Layer], x: np.ndarray) -> list[np.ndarray]:
    """dmu_l/dz_{l-1} at the forward pass of one example x (d_in, 1)."""
    inputs = [x, *forward(net, x)[:-1]]
    return [
        slope(layer.after, linear_map(layer, z)) * (layer.premultiplier * layer.weight) * slope(layer.before, z).T
        + (np.eye(len(z)) if layer.skip else 0.0)
        for layer, z in zip(net, inputs, strict=True)
    ]


def rescaling(maps: Sequence[np.ndarray]) -> np.ndarray:
    """S = I + sum_{l=2}^{L} (J_L ... J_l)(J_L ... J_l)^T (theorem 3.1), each product multiplied out."""
    d_out = len(maps[-1])
    s = np.eye(d_out)
    for lowest in range(1, len(maps)):
        product = np.eye(d_out)
        for jacobian in maps[: lowest - 1 : -1]:
            product = product @ jacobian
        s = s + product @ product.T
    return s


def finite_difference(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function, entry by entry."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def relative_error(value: Any, expected: np.ndarray) -> float:
    """||value - expected|| / ||expected||, safe from underflow of the squares."""
    expected = np.asarray(expected, np.float64)
    unit = np.max(np.abs(expected))
    difference = (np.asarray(value, np.float64) - expected) / unit
    return float(np.linalg.norm(difference) / np.linalg.norm(expected / unit))
