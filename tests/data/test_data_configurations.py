"""Every file in conf/data builds its source, says every hyperparameter, and gives the numbers that it gave before."""

from dataclasses import fields
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from pcexp.data import Published, Tfds
from pcexp.data.__main__ import NAMES
from pcexp.data.dataset import AbstractData

FILES = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))
CHECKSUMS = {
    "digits": "65e5b4619795efb4",
    "mnist1d": "734a52bc3f79313a",
    "linear_regression": "c85d7514907e53bb",
    "gaussian": "09e59defb1a9084b",
    "matrix": "b3fae97ffd8f3d8d",
}


def build(file: Path, **changes: object) -> AbstractData:
    return instantiate(OmegaConf.merge(OmegaConf.load(file), changes))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_names_every_hyperparameter_of_its_source(path):
    source = build(path, **({"path": "mine.npz"} if path.stem == "npz" else {}))
    assert isinstance(source, AbstractData)
    written = OmegaConf.to_container(OmegaConf.load(path))
    assert set(written) - {"_target_"} == {field.name for field in fields(source)}
    if isinstance(source, Tfds):
        assert isinstance(source.published, Published)
        assert set(written["published"]) - {"_target_"} == {field.name for field in fields(Published)}


def test_the_command_lists_the_sets_that_have_a_configuration():
    named = {path.stem for path in FILES if OmegaConf.load(path)["_target_"].endswith(".Tfds")}
    assert named == set(NAMES)
    assert all(getattr(build(path), "name", None) == path.stem for path in FILES if path.stem in named)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem in CHECKSUMS], ids=lambda path: path.stem)
def test_bundled_and_generated_data_give_the_numbers_that_they_gave_before(path):
    """Pinned to this code's own output: it tells a change, not which side is right. The other tests do that."""
    assert build(path).load().checksum[:16] == CHECKSUMS[path.stem]
