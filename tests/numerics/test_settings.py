"""The settings that make the other tests strict are in force."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from pcexp.energy import loss
from pcexp.inference import GradientDescent
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import Standard


def test_arrays_of_different_rank_are_not_broadcast():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_a_warning_is_an_error():
    with pytest.raises(UserWarning, match="careful"):
        warnings.warn("careful", stacklevel=1)


def test_annotations_are_enforced_and_an_integer_is_a_float():
    network = FullyConnected(width=3, n_hidden=1, activation="tanh").build(Standard(), (2,), 2, key=jax.random.key(0))
    with pytest.raises(TypeCheckError, match="y"):
        loss(network, jnp.ones((2, 4)), jnp.ones(4))
    assert GradientDescent(activity_lr=1, max_steps=2).activity_lr == 1
    with pytest.raises(TypeCheckError, match="activation"):
        FullyConnected(width=3, n_hidden=1, activation="sigmoid")


def test_float64_is_on_only_where_it_is_asked_for(request):
    assert jnp.ones(1).dtype == jnp.float32
    request.getfixturevalue("x64")
    assert jnp.ones(1).dtype == jnp.float64
