"""What an output layer ends in: the value of its linear map u, and the loss that targets y pull on it with."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Linear = Float[Array, "layers d_out ..."]
"""Linear maps u_L of the output layer, its one layer along the first axis, outputs along the second."""


class AbstractOutput(eqx.Module):
    """An output g(u) and a loss whose error -dloss/du is y - g(u): each g is the canonical one of its loss, with a softmax for
    targets that sum to one.

    Errors are pulled back from u as they are: no derivative of g enters inference or learning.
    """

    @property
    def name(self) -> str:
        """Name in the configuration."""
        return type(self).__name__.lower()

    @abc.abstractmethod
    def value(self, u: Linear) -> Linear:
        """Outputs g(u)."""

    def difference(self, u: Linear, d: Linear) -> Linear:
        """Differences g(u + d) - g(u). Subtracted from an error of order one: it may cancel."""
        return self.value(u + d) - self.value(u)

    @abc.abstractmethod
    def losses(self, u: Linear, y: Float[Array, "1 d_out ..."]) -> Float[Array, "1 d_out ..."]:
        """Losses, of which every output has its part: their sum over outputs is an example's."""


class Squared(AbstractOutput):
    """The linear map itself and half its squared distance, 1/2 ||y - u||^2."""

    def value(self, u: Linear) -> Linear:
        return u

    def difference(self, u: Linear, d: Linear) -> Linear:
        return d

    def losses(self, u: Linear, y: Float[Array, "1 d_out ..."]) -> Float[Array, "1 d_out ..."]:
        return jnp.square(y - u) / 2


class Softmax(AbstractOutput):
    """Probabilities softmax(u) of classes and the cross-entropy -sum_k y_k log softmax(u)_k."""

    def value(self, u: Linear) -> Linear:
        return jax.nn.softmax(u, axis=1)

    def losses(self, u: Linear, y: Float[Array, "1 d_out ..."]) -> Float[Array, "1 d_out ..."]:
        return -y * jax.nn.log_softmax(u, axis=1)


class Sigmoid(AbstractOutput):
    """Probabilities 1 / (1 + e^-u), one an output, and the binary cross-entropy -y log g(u) - (1 - y) log(1 - g(u))."""

    def value(self, u: Linear) -> Linear:
        return jax.nn.sigmoid(u)

    def losses(self, u: Linear, y: Float[Array, "1 d_out ..."]) -> Float[Array, "1 d_out ..."]:
        return jax.nn.softplus(u) - y * u
