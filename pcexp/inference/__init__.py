"""Inference: activities that lower the energy at fixed weights. One solver a file; each is a final subclass."""

from pcexp.inference.adam import AdamInference
from pcexp.inference.base import STOPPED_BY, AbstractInference, Equilibrium
from pcexp.inference.closed_form import ClosedForm
from pcexp.inference.error_descent import ErrorDescent
from pcexp.inference.gradient_descent import GradientDescent
from pcexp.inference.momentum import Momentum
from pcexp.inference.ode import ODE
from pcexp.inference.sequential import Sequential
from pcexp.inference.starts import AbstractStart, AmortisedStart, ForwardStart, RandomStart
from pcexp.problem import InferenceProblem

__all__ = [
    "ODE",
    "STOPPED_BY",
    "AbstractInference",
    "AbstractStart",
    "AdamInference",
    "AmortisedStart",
    "ClosedForm",
    "Equilibrium",
    "ErrorDescent",
    "ForwardStart",
    "GradientDescent",
    "InferenceProblem",
    "Momentum",
    "RandomStart",
    "Sequential",
]
