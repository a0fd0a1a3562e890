"""Networks: tuples of segments, with their forward pass and the predictions at given activities.

Everything here is written for one example; batches enter by `jax.vmap` over the axes that `Network.batch_axes` names.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.model.checks import check_choice, check_shapes
from pcexp.model.output import AbstractOutput, Squared
from pcexp.model.segments import AbstractSegment, Dense, Precision, Prior, Reference, over_layers

Activities = tuple[Float[Array, "_ ..."], ...]
"""One array a segment, layers along the first axis; the last entry is the output z_L."""


class AbstractModel(eqx.Module):
    """What learns: a network, or several that learn together."""

    @property
    @abc.abstractmethod
    def stacks(self) -> tuple[AbstractSegment, ...]:
        """Segments of all of its networks."""

    @property
    def path(self) -> tuple[AbstractSegment, ...]:
        """Segments from the inputs x to the outputs, of all or of one of its networks."""
        return self.stacks

    @property
    def input_batch_axis(self) -> int:
        """Position of the batch axis in the inputs x."""
        axis = self.stacks[0].batch_axis
        return axis if axis < 0 else axis - 1  # no layers in front

    @abc.abstractmethod
    def forward(self, x: Float[Array, "..."], *, batched: bool = False) -> tuple[Activities, tuple[Reference, ...]]:
        """Forward pass of all of its layers from x, and the references that deviations from it need."""


class Network(AbstractModel):
    """A feedforward network as a tuple of segments; the last segment is the output layer, whose linear map `output` ends in."""

    segments: tuple[AbstractSegment, ...]
    output: AbstractOutput = Squared()
    precisions: tuple[float, ...] | None = eqx.field(static=True, default=None)
    """Precisions p_1..p_L of the layers' errors in the energy; None where all are 1."""

    def __check_init__(self) -> None:
        if self.precisions is not None and (
            len(self.precisions) != self.depth or not all(0 <= p < math.inf for p in self.precisions)
        ):
            raise ValueError(f"precisions={list(self.precisions)}: {self.depth} are needed, one a layer, none negative")

    def precisions_of(self, index: int) -> np.ndarray:
        """Precisions of the layers of one segment."""
        ends = list(itertools.accumulate((segment.depth for segment in self.segments), initial=0))
        return (
            np.ones(self.segments[index].depth)
            if self.precisions is None
            else np.asarray(self.precisions[ends[index] : ends[index + 1]])
        )

    def with_prior(self, precision: float) -> "Network":
        """The same network with its input as one more layer z_0, which a prior of a precision predicts."""
        if not precision >= 0:
            raise ValueError(f"the precision of a prior must not be negative, not {precision}")
        above = (1.0,) * self.depth if self.precisions is None else self.precisions
        weight = jnp.zeros((1, 0), self.segments[0].weight.dtype)
        precisions = (precision, *above) if {precision, *above} != {1.0} else None
        return Network((Prior(weight, batch_axis=self.segments[0].batch_axis), *self.segments), self.output, precisions)

    def with_segments(self, segments: Iterable[AbstractSegment]) -> "Network":
        """The same network with other layers, or with their derivatives."""
        return dataclasses.replace(self, segments=tuple(segments))

    def in_products(self, precision: Precision) -> "Network":
        """The same network with its weights as products take them."""
        check_choice("precision", precision, get_args(Precision))
        return self.with_segments(segment.in_products(precision) for segment in self.segments)

    def for_inference(self) -> "Network":
        """The same network with what makes many products with the same weights faster."""
        return self.with_segments(segment.for_inference() for segment in self.segments)

    @property
    def above_prior(self) -> "Network":
        """A network with a prior, without it."""
        precisions = None if self.precisions is None else self.precisions[1:]
        return dataclasses.replace(self, segments=self.segments[1:], precisions=precisions)

    @property
    def depth(self) -> int:
        """Number of weight matrices L = H + 1."""
        return sum(segment.depth for segment in self.segments)

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """Position of the batch axis in the activities of each segment, layers in front."""
        return tuple(segment.batch_axis for segment in self.segments)

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The same in the inputs of each segment, which lie where the segment before it put them."""
        return (self.segments[0].batch_axis, *self.batch_axes[:-1])

    @property
    def stacks(self) -> tuple[AbstractSegment, ...]:
        return self.segments

    @property
    def generator(self) -> "Network":
        """What inference works on: of a pair, the network from below up."""
        return self

    @property
    def is_linear(self) -> bool:
        """Whether every layer is an affine map of one vector, and derivatives are those of the map."""
        return isinstance(self.output, Squared) and all(
            isinstance(s, Dense) and not s.forward_only and s.before == s.after == "linear" for s in self.segments
        )

    def forward(self, x: Float[Array, "..."], *, batched: bool = False) -> tuple[Activities, tuple[Reference, ...]]:
        """Forward pass zhat_l = mu_l(zhat_{l-1}) and the reference that deviations from it need.

        Of one example, or of a batch with its axis where the segments have it: then the loop over layers stays outside
        vmap, which would move the batch to the front of all that it carries, and back again around every product.
        """
        if batched:
            check_shapes(self, x)
        activities, references, z = [], [], x
        for segment, moved, own in zip(self.segments, self.input_axes, self.batch_axes, strict=True):

            def layer(z: Array, parameters: AbstractSegment, axes: tuple[int, int] = (moved, own)) -> Any:
                one = jax.tree.map(lambda p: p[None], parameters)

                def outputs(v: Array) -> tuple[Array, Array]:
                    u = one.linear(v)
                    return u, one.after_linear(v, u)

                u, out = (jax.vmap(outputs, *axes) if batched else outputs)(z[None])
                return out[0], (z, u[0], out[0])

            z, (inputs, u, out) = over_layers(layer, z, segment)
            activities.append(out)
            references.append(segment.reference(inputs, u))
        activities[-1] = self.output.value(activities[-1])
        return tuple(activities), tuple(references)

    def inputs(self, x: Float[Array, "..."], activities: Activities) -> Activities:
        """Inputs z_{l-1} of every layer, segment by segment: x, then the activities moved up by one."""
        stacked, last = [], x
        for segment, z in zip(self.segments, activities, strict=True):
            stacked.append(last[None] if segment.depth == 1 else jnp.concatenate([last[None], z[:-1]]))
            last = z[-1]
        return tuple(stacked)
