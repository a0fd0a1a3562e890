"""Every file in conf/data builds its source, says every hyperparameter, and gives the numbers that it gave before."""

from dataclasses import fields
from typing import Any

import pytest
import quick
from hydra.utils import instantiate

from pcexp.data import Published, Tfds
from pcexp.data.__main__ import NAMES
from pcexp.data.dataset import AbstractData

NAMED = sorted(path.stem for path in (quick.CONF / "data").glob("*.yaml"))
CHECKSUMS = {
    "digits": "65e5b4619795efb4",
    "mnist1d": "734a52bc3f79313a",
    "linear_regression": "c85d7514907e53bb",
    "gaussian": "09e59defb1a9084b",
    "matrix": "b3fae97ffd8f3d8d",
}


def written(name: str) -> dict[str, Any]:
    """What the configuration of a data set says."""
    needed = ["data.path=mine.npz"] if name == "npz" else []
    return quick.composed(f"data={name}", *needed, base=())["data"]


@pytest.mark.parametrize("name", NAMED)
def test_a_configuration_names_every_hyperparameter_of_its_source(name):
    said = written(name)
    source = instantiate(said)
    assert isinstance(source, AbstractData)
    assert set(said) - {"_target_"} == {field.name for field in fields(source)}
    if isinstance(source, Tfds):
        assert isinstance(source.published, Published)
        assert set(said["published"]) - {"_target_"} == {field.name for field in fields(Published)}


def test_the_command_lists_the_sets_that_have_a_configuration():
    sets = {name: said for name in NAMED if (said := written(name))["_target_"].endswith(".Tfds")}
    assert set(sets) == set(NAMES)
    assert all(said["name"] == name for name, said in sets.items())


@pytest.mark.parametrize("name", sorted(CHECKSUMS))
def test_bundled_and_generated_data_give_the_numbers_that_they_gave_before(name):
    """Pinned to this code's own output: it tells a change, not which side is right. The other tests do that."""
    assert instantiate(written(name)).load().checksum[:16] == CHECKSUMS[name]
