"""Architectures: what a configuration says of a network, and how a network is built from it."""

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from pcexp.data import Arrangement
from pcexp.model.activation import Activation
from pcexp.model.checks import check_choices
from pcexp.model.convolution import Convolution
from pcexp.model.network import Network
from pcexp.model.output import AbstractOutput, Squared
from pcexp.model.pair import Pair
from pcexp.model.parameterisation import AbstractParameterisation, LayerPosition, uniform
from pcexp.model.segments import AbstractSegment, Dense

Form = Literal["pre", "post"]
"""Pre-activation: mu = a W phi(z) (chapter 5). Post-activation: mu = phi(a W z) (chapters 3, 4, 6.2)."""
Premultipliers = Literal["everywhere", "forward_pass"]
"""Where premultipliers act: in predictions and their derivatives, or in predictions alone (section 5.8)."""


def default_segment_size(n_layers: int) -> int:
    """Layers in a segment: few on a CPU, whose cache then holds one and whose wavefront is finer, many on a GPU.

    At most sixteen segments, so that compiling takes as long at 128 layers as at 32.
    """
    return max(2, -(-n_layers // 16)) if jax.default_backend() == "cpu" else 64


class AbstractArchitecture(eqx.Module):
    """The shape of a network; `build` draws its weights."""

    def __check_init__(self) -> None:
        check_choices(self)

    @property
    @abc.abstractmethod
    def arrangement(self) -> Arrangement:
        """What of the data stands below it and what above."""

    @abc.abstractmethod
    def build(
        self, parameterisation: AbstractParameterisation, input_shape: tuple[int, ...], d_out: int, *, key: PRNGKeyArray
    ) -> Any:
        """A model (a network, or a pair of them) with freshly drawn weights. Raises ValueError for an input that the architecture cannot take."""


class FullyConnected(AbstractArchitecture):
    """D - H x N - K, fully connected; width 1 is a chain. Skips sit on weight matrices 2..L-1.

    A `generative` network is K - H x N - D, from targets to inputs, or from so many free `latents`. `precisions` weigh the L
    layers' errors in the energy.
    """

    width: int
    n_hidden: int
    activation: Activation
    form: Form = "post"
    biases: bool = False
    skips: bool = False
    segment_size: int | None = None
    output: AbstractOutput = Squared()
    premultipliers: Premultipliers = "everywhere"
    precisions: Sequence[float] | None = None
    generative: bool = False
    latents: int | None = None

    def __check_init__(self) -> None:
        for name in ("width", "n_hidden", "segment_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.latents is not None and (self.latents < 1 or not self.generative):
            raise ValueError(f"latents={self.latents}: valid are null, and 1 or more with generative=true")

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement(generative=self.generative, latents=self.latents)

    def build(
        self, parameterisation: AbstractParameterisation, input_shape: tuple[int, ...], d_out: int, *, key: PRNGKeyArray
    ) -> Network:
        depth = self.n_hidden + 1
        drawn = functools.partial(self.segment, parameterisation, depth, key)
        parts = _cut(range(2, depth), self.segment_size or default_segment_size(depth - 2))
        hidden = [drawn(layers, self.width, self.width) for layers in parts]
        first = drawn(range(1, 2), math.prod(input_shape), self.width)
        last = drawn(range(depth, depth + 1), self.width, d_out)
        precisions = None if self.precisions is None else tuple(self.precisions)
        return Network((first, *hidden, last), self.output, precisions)

    def segment(
        self,
        parameterisation: AbstractParameterisation,
        depth: int,
        key: PRNGKeyArray,
        layers: range,
        d_in: int,
        d_out: int,
    ) -> Dense:
        """Layers of equal shape as one segment. phi never acts on x nor on the output, the ends have no skip."""
        positions = [LayerPosition(index, depth, d_in, self.skips, self.activation) for index in layers]
        weights, biases = [], []
        for at in positions:
            # The key depends on the layer's number only, so the segment size does not change a draw.
            weight_key, bias_key = jr.split(jr.fold_in(key, at.layer))
            weights.append(parameterisation.weight(at, (d_out, d_in), key=weight_key))
            if self.biases:
                biases.append(uniform((d_out,), d_in, bias_key))
        return Dense(
            jnp.stack(weights),
            jnp.stack(biases) if self.biases else None,
            parameterisation.premultiplier(positions[0]),
            skip=self.skips and 1 < layers[0] < depth,
            before=self.activation if self.form == "pre" and layers[0] > 1 else "linear",
            after=self.activation if self.form == "post" and layers[0] < depth else "linear",
            forward_only=self.premultipliers == "forward_pass",
        )


class Convolutional(AbstractArchitecture):
    """Convolutions (kernel, stride 1, padding, activation, max pooling) with biases, then fully connected layers without.

    Post-activation; the output layer is linear. Convolutional biases are drawn at the default initialisation.
    """

    channels: Sequence[int]
    widths: Sequence[int]
    activation: Activation
    kernel_size: int = 3
    pool: int = 2
    output: AbstractOutput = Squared()

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement(flat=False)

    def build(
        self, parameterisation: AbstractParameterisation, input_shape: tuple[int, ...], d_out: int, *, key: PRNGKeyArray
    ) -> Network:
        if len(input_shape) != 3:
            raise ValueError(f"a convolutional network needs images (height, width, channels), not {input_shape}")
        height, width, c_in = input_shape
        depth = len(self.channels) + len(self.widths) + 1
        segments: list[AbstractSegment] = []
        for index, c_out in enumerate(self.channels, start=1):
            fan_in = c_in * self.kernel_size**2
            at = LayerPosition(index, depth, fan_in, False, self.activation)
            weight_key, bias_key = jr.split(jr.fold_in(key, index))
            weight = parameterisation.weight(at, (1, self.kernel_size, self.kernel_size, c_in, c_out), key=weight_key)
            bias = uniform((1, 1, 1, c_out), fan_in, bias_key)
            a = parameterisation.premultiplier(at)
            segments.append(Convolution(weight, bias, a, False, "linear", self.activation, self.pool))
            height, width, c_in = height // self.pool, width // self.pool, c_out
        sizes = [height * width * c_in, *self.widths, d_out]
        dense = FullyConnected(1, 1, self.activation)
        for index, (d_in, d) in enumerate(itertools.pairwise(sizes), start=len(self.channels) + 1):
            segments.append(dense.segment(parameterisation, depth, key, range(index, index + 1), d_in, d))
        return Network(tuple(segments), self.output)


class Hybrid(AbstractArchitecture):
    """A generative network and its amortiser: the same layers in reverse, which guess what is below from what is above."""

    generator: FullyConnected

    def __check_init__(self) -> None:
        if not self.generator.generative:
            raise ValueError("generator.generative=false: the amortiser guesses what is below a generative network")

    @property
    def arrangement(self) -> Arrangement:
        return self.generator.arrangement

    def build(
        self, parameterisation: AbstractParameterisation, input_shape: tuple[int, ...], d_out: int, *, key: PRNGKeyArray
    ) -> Pair:
        down = dataclasses.replace(self.generator, output=Squared(), precisions=None)
        return Pair(
            self.generator.build(parameterisation, input_shape, d_out, key=key),
            down.build(parameterisation, (d_out,), math.prod(input_shape), key=jr.fold_in(key, 0)),
        )


def _cut(layers: range, size: int) -> list[range]:
    """Consecutive parts of nearly equal length, none longer than `size`."""
    n_parts = -(-len(layers) // size)
    bounds = [layers.start + len(layers) * i // max(n_parts, 1) for i in range(n_parts + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]
