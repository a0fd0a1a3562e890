"""Networks that learn side by side: one model to the training loop, the same batches to each."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import Batch
from pcexp.learning.base import AbstractLearning, WeightGradient
from pcexp.model.network import AbstractModel, Activities, Network
from pcexp.model.segments import AbstractSegment, Reference


class Networks(AbstractModel):
    """Networks with inputs of one layout, as one model."""

    members: tuple[Network, ...]

    @property
    def stacks(self) -> tuple[AbstractSegment, ...]:
        return tuple(segment for network in self.members for segment in network.segments)

    def forward(self, x: Float[Array, "..."], *, batched: bool = False) -> tuple[Activities, tuple[Reference, ...]]:
        """Forward passes of all members, those of the first one in front."""
        passes = [network.forward(x, batched=batched) for network in self.members]
        return sum((one for one, _ in passes), ()), sum((at for _, at in passes), ())


class Beside(AbstractLearning):
    """A rule for each network: the same batch and the same key for all, the loss their mean.

    What is seen of network i, its own loss among it, is called by its name and _i.
    """

    rules: tuple[AbstractLearning, ...]

    def gradient(self, model: Any, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        self.check(model)
        found = [rule.gradient(one, batch, key=key) for rule, one in zip(self.rules, model.members, strict=True)]
        seen = {
            f"{name}_{i}": value
            for i, one in enumerate(found)
            for name, value in ({"loss": one.loss} | one.diagnostics).items()
        }
        return WeightGradient(
            Networks(tuple(one.gradient for one in found)), jnp.mean(jnp.stack([one.loss for one in found])), seen
        )

    def check_regime(self, model: Any) -> None:
        for rule, one in zip(self.rules, model.members, strict=True):
            rule.check_regime(one)

    def regime(
        self, model: Any, batch: Batch, found: WeightGradient, *, key: PRNGKeyArray | None = None
    ) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        for i, (rule, one) in enumerate(zip(self.rules, model.members, strict=True)):
            own = {name.removesuffix(f"_{i}"): v for name, v in found.diagnostics.items() if name.endswith(f"_{i}")}
            seen = rule.regime(one, batch, WeightGradient(found.gradient.members[i], own["loss"], own), key=key)
            columns |= {f"{name}_{i}": value for name, value in seen.items()}
        return columns

    def forward_passes(self) -> float:
        return sum(rule.forward_passes() for rule in self.rules)

    def check(self, model: Any) -> None:
        if not isinstance(model, Networks) or len(model.members) != len(self.rules):
            raise ValueError(f"{len(self.rules)} rules side by side need as many networks side by side")
        for rule, one in zip(self.rules, model.members, strict=True):
            rule.check(one)
