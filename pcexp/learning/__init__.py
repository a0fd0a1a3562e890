"""Learning rules: the weight gradient that a training step uses."""

from pcexp.learning.base import AbstractLearning as AbstractLearning
from pcexp.learning.base import GradientScale as GradientScale
from pcexp.learning.base import WeightGradient as WeightGradient
from pcexp.learning.beside import Beside as Beside
from pcexp.learning.beside import Networks as Networks
from pcexp.learning.bp import BP as BP
from pcexp.learning.equilibrated import Equilibrated as Equilibrated
from pcexp.learning.hybrid import Hybrid as Hybrid
from pcexp.learning.pc import PC as PC
