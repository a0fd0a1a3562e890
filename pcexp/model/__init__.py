"""Networks: their layers, architectures, parameterisations and outputs."""

from pcexp.model.architecture import AbstractArchitecture, Convolutional, FullyConnected
from pcexp.model.network import Activities, Network
from pcexp.model.output import AbstractOutput, Sigmoid, Softmax, Squared
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
    "AbstractOutput",
    "AbstractParameterisation",
    "Activities",
    "Convolutional",
    "FullyConnected",
    "MuPC",
    "NearOrigin",
    "NearZeroRank",
    "Network",
    "Orthogonal",
    "Sigmoid",
    "Softmax",
    "Squared",
    "Standard",
]
