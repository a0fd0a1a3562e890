"""What is refused at the door, in plain words: names that no option has, and arrays that a network cannot take.

Only static shapes are looked at: nothing of it is left in a compiled step.
"""

import dataclasses
import difflib
import typing
from typing import Any


def check_choices(module: Any) -> None:
    """Raise ValueError where a field that takes one of a few words has another."""
    for field in dataclasses.fields(module):
        if typing.get_origin(field.type) is typing.Literal:
            check_choice(field.name, getattr(module, field.name), typing.get_args(field.type))


def check_choice(name: str, value: Any, valid: tuple[Any, ...]) -> None:
    """Raise ValueError where a word is not one of those that are valid, with the one that is close."""
    if value not in valid:
        close = difflib.get_close_matches(str(value), valid, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{name}={value!r}: valid are {', '.join(valid)}{hint}")


def check_shapes(
    model: Any, x: Any = None, y: Any = None, mask: Any = None, x_mask: Any = None, *, examples_first: bool = False
) -> None:
    """Raise ValueError where a batch is not in a model's layout: features first, one example a column; images examples first.

    With `examples_first` all arrays are, as in a `Split`. Looked at are the size of an input and of a target, and whether all
    have one number of examples. Transposed arrays are noticed by that, but for an x with as many examples as features, a y with as
    many examples as outputs, and images whose height and width have changed places: no shape says so.
    """
    axis, segments, batch = 0 if examples_first else model.input_batch_axis, model.path, None
    sizes: tuple[int, ...] = ()
    if x is not None:
        sizes = x.shape[1:] if axis == 0 else x.shape[:-1]
        valid = next(found for segment in segments if (found := segment.example(sizes)) is not None)
        batch = x.shape[axis] if valid == sizes else None
        _refuse("x", x, valid, axis, batch)
    targets, their_axis = segments[-1].weight.shape[1:2], 0 if examples_first else -1
    for name, array in (("y", y), ("mask", mask)):
        if array is not None:
            batch = array.shape[their_axis] if batch is None and array.ndim == 2 else batch
            _refuse(name, array, targets, their_axis, batch)
    if x_mask is not None:
        _refuse("x_mask", x_mask, sizes, axis, batch)


def _refuse(name: str, array: Any, sizes: tuple[Any, ...], axis: int, batch: int | None) -> None:
    """Raise ValueError where an array is no batch of examples of these sizes."""
    n = "batch" if batch is None else batch
    valid = (n, *sizes) if axis == 0 else (*sizes, n)
    if array.shape != valid:
        order = "one example along the first axis" if axis == 0 else "features first and one example a column"
        raise ValueError(f"{name} of shape {array.shape}: valid is ({', '.join(map(str, valid))}), {order}")
