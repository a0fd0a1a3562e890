"""Networks that lanes ended with, where a run was asked to keep them."""

import json
from pathlib import Path

import jax.random as jr

from pcexp.config.spec import with_values
from pcexp.config.targets import ALLOWED_TARGETS, build
from pcexp.model.architecture import AbstractArchitecture
from pcexp.model.network import Network
from pcexp.records import checkpoint
from pcexp.records.cell import Cell
from pcexp.run.draw import arithmetic, in_floats


def trained_network(folder: Path, lane: str) -> Network:
    """The network that a lane of the cell in `folder` ended with (kept with execution.save_networks=true).

    Raises CheckpointError where it is missing, damaged, or of another shape than the cell's configuration says.
    """
    path = folder / "networks" / f"{lane}.npz"
    about = checkpoint.about(path)
    values = Cell(folder, ()).finished[lane]["values"]
    science = with_values(json.loads((folder / "config.json").read_text())["science"], values)
    architecture: AbstractArchitecture = build(science["network"], "network", ALLOWED_TARGETS)
    parameterisation = build(science["parameterisation"], "parameterisation", ALLOWED_TARGETS)
    shape = tuple(about["input_shape"])
    drawn = architecture.build(parameterisation, shape, about["d_out"], key=jr.key(0))
    with arithmetic(science["precision"]):
        network, _ = checkpoint.load(path, in_floats(drawn))
    return network
