"""Networks: their layers, architectures, parameterisations and outputs."""

from pcexp.model.architecture import AbstractArchitecture, Convolutional, FullyConnected, Hybrid
from pcexp.model.network import AbstractModel, Activities, Network
from pcexp.model.output import AbstractOutput, Sigmoid, Softmax, Squared
from pcexp.model.pair import Pair
from pcexp.model.parameterisation import (
    NTK,
    AbstractParameterisation,
    MuPC,
    NearOrigin,
    NearZeroRank,
    Orthogonal,
    Standard,
)

__all__ = [
    "NTK",
    "AbstractArchitecture",
    "AbstractModel",
    "AbstractOutput",
    "AbstractParameterisation",
    "Activities",
    "Convolutional",
    "FullyConnected",
    "Hybrid",
    "MuPC",
    "NearOrigin",
    "NearZeroRank",
    "Network",
    "Orthogonal",
    "Pair",
    "Sigmoid",
    "Softmax",
    "Squared",
    "Standard",
]
