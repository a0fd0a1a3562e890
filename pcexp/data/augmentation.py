"""Augmentation of training images: a random rotation, flip and shift of each, drawn anew for every batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

Image = Float[Array, "height width channels"]


class Augmentation(eqx.Module):
    """Rotation by up to `rotation_degrees` about the centre (nearest pixel), a flip of left and right with probability 1/2,
    and a crop of the image padded by `crop` pixels: a shift by up to as many along each axis. What comes in is black."""

    crop: int = 0
    flip: bool = False
    rotation_degrees: float = 0.0

    def __check_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop must not be negative, not {self.crop}")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees={self.rotation_degrees}: valid are 0 to 180")


class Augment(eqx.Module):
    """An augmentation of the images of one data set, in its layout: `flat` is (channels * height * width)."""

    settings: Augmentation
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    black: tuple[float, ...] = eqx.field(static=True)
    flat: bool = eqx.field(static=True, default=False)

    def __call__(self, x: Float[Array, "batch ..."], *, key: PRNGKeyArray) -> Float[Array, "batch ..."]:
        """Images of a batch, each changed by itself."""
        height, width, channels = self.image_shape
        images = jnp.moveaxis(x.reshape(-1, channels, height, width), 1, -1) if self.flat else x
        images = jax.vmap(self._one)(images, jr.split(key, len(images)))
        return jnp.moveaxis(images, -1, 1).reshape(x.shape) if self.flat else images

    def _one(self, image: Image, key: PRNGKeyArray) -> Image:
        height, width, _ = self.image_shape
        for_angle, for_flip, for_shift = jr.split(key, 3)
        limit = jnp.deg2rad(self.settings.rotation_degrees)
        angle = jr.uniform(for_angle, (), minval=-limit, maxval=limit)
        shift = jr.randint(for_shift, (2,), -self.settings.crop, self.settings.crop + 1)
        flipped = jr.bernoulli(for_flip) & self.settings.flip
        # Where each pixel of the result comes from: the changes undone, the last one first.
        row, column = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
        row, column = row + shift[0], column + shift[1]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        column = jnp.where(flipped, width - 1 - column, column)
        y, x = row - (height - 1) / 2, column - (width - 1) / 2
        row = jnp.round(jnp.cos(angle) * y - jnp.sin(angle) * x + (height - 1) / 2).astype(int)
        column = jnp.round(jnp.sin(angle) * y + jnp.cos(angle) * x + (width - 1) / 2).astype(int)
        inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        moved = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
        return jnp.where(inside[..., None], moved, jnp.asarray(self.black, image.dtype))
