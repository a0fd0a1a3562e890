"""Learning rules: the weight gradient that a training step uses."""

from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient
from pcexp.learning.beside import Beside, Networks
from pcexp.learning.bp import BP
from pcexp.learning.equilibrated import Equilibrated
from pcexp.learning.hybrid import Hybrid
from pcexp.learning.pc import PC

__all__ = [
    "BP",
    "PC",
    "AbstractLearning",
    "Beside",
    "Equilibrated",
    "GradientScale",
    "Hybrid",
    "Networks",
    "WeightGradient",
]
