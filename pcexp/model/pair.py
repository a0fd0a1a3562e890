"""A generator and the network that guesses what is below it."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcexp.model.network import AbstractModel, Activities, Network
from pcexp.model.segments import AbstractSegment, Reference


class Pair(AbstractModel):
    """A generator from below up, and an amortiser of the same hidden layers, in reverse, from what is above down.

    The amortiser's layer l is a guess at the generator's layer L - l: its output is one at z_0.
    """

    generator: Network
    amortiser: Network

    def __check_init__(self) -> None:
        up, down = (
            [s.weight.shape[1] for s in n.segments for _ in range(s.depth)] for n in (self.generator, self.amortiser)
        )
        if up[:-1] != down[-2::-1]:
            raise ValueError(
                f"hidden layers of {up[:-1]} units up and {down[:-1]} down: a pair has the same, in reverse"
            )

    @property
    def stacks(self) -> tuple[AbstractSegment, ...]:
        return self.generator.segments + self.amortiser.segments

    @property
    def path(self) -> tuple[AbstractSegment, ...]:
        return self.generator.segments

    def forward(self, x: Float[Array, "..."], *, batched: bool = False) -> tuple[Activities, tuple[Reference, ...]]:
        """Forward pass of the generator, and the amortiser's from where that ends."""
        up, at = self.generator.forward(x, batched=batched)
        down, at_down = self.amortiser.forward(up[-1][-1], batched=batched)
        return up + down, at + at_down

    def guess(self, y: Float[Array, "d_out batch"]) -> Activities:
        """The generator's activities z_0..z_H that the amortiser's forward pass from y gives."""
        activities, _ = self.amortiser.forward(y, batched=True)
        return (activities[-1], *_mirrored(activities[:-1], self.generator))

    def as_amortised(self, below: Float[Array, "d_in batch"], hidden: Activities) -> Activities:
        """The amortiser's activities, output and all, that the generator's z_0 and hidden layers are."""
        return (*_mirrored(hidden, self.amortiser), below[None])


def _mirrored(hidden: Activities, network: Network) -> Activities:
    """Hidden layers in reverse, in the segments of another network."""
    layers = jnp.concatenate(hidden)[::-1]
    ends = list(itertools.accumulate(segment.depth for segment in network.segments[:-1]))
    return tuple(jnp.split(layers, ends[:-1]))
