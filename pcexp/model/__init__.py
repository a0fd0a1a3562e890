"""Networks: their layers, architectures, parameterisations and outputs."""

from pcexp.model.architecture import Convolutional as Convolutional
from pcexp.model.architecture import FullyConnected as FullyConnected
from pcexp.model.architecture import Hybrid as Hybrid
from pcexp.model.network import Network as Network
from pcexp.model.output import Sigmoid as Sigmoid
from pcexp.model.output import Softmax as Softmax
from pcexp.model.output import Squared as Squared
from pcexp.model.pair import Pair as Pair
from pcexp.model.parameterisation import NTK as NTK
from pcexp.model.parameterisation import MuPC as MuPC
from pcexp.model.parameterisation import NearOrigin as NearOrigin
from pcexp.model.parameterisation import NearZeroRank as NearZeroRank
from pcexp.model.parameterisation import Orthogonal as Orthogonal
from pcexp.model.parameterisation import Standard as Standard
