"""Wrong shapes and words are refused where the tests' type checker is not at hand: by a process of its own, `without_hook.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUMPY_RANK_PROMOTION"}
    script = Path(__file__).with_name("without_hook.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_entry_refuses_arrays_that_are_transposed_flat_or_of_another_batch(said):
    assert [name for name, message in said["refused"].items() if message is None] == []
    assert len(said["refused"]) > 170
    assert all("valid" in message.lower() for message in said["refused"].values())


def test_what_is_valid_is_accepted_and_an_x_with_as_many_examples_as_features_cannot_be_told(said):
    assert {name: message for name, message in said["accepted"].items() if message is not None} == {}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("loss: x transposed", "x of shape (4, 3): valid is (3, batch), features first and one example a column"),
        ("PC: y of one output, flat", "y of shape (4,): valid is (2, 4), features first and one example a column"),
        ("evaluation: y of one row", "y of shape (4, 1): valid is (4, 2), one example along the first axis"),
        (
            "images: batch last",
            "x of shape (4, 4, 1, 7): valid is (batch, height, width, 1), one example along the first axis",
        ),
        ("activation", "activation='tanhh': valid are linear, tanh, relu (did you mean tanh?)"),
    ],
)
def test_a_refusal_says_what_was_given_and_what_is_valid(said, case, message):
    assert said["refused"][case] == message


@pytest.mark.parametrize("case", ["bfloat16 in activities", "bfloat16 in activities, by hand"])
def test_products_in_bfloat16_are_refused_in_activities_with_what_works(said, case):
    assert said["refused"][case].startswith("precision=bfloat16 with inference in form=activities")
    assert "Valid are precision=float32, and form=deviations" in said["refused"][case]
