"""Inference: activities that lower the energy at fixed weights. One solver a file; each is a final subclass."""

from pcexp.inference.adam import AdamInference as AdamInference
from pcexp.inference.base import STOPPED_BY as STOPPED_BY
from pcexp.inference.base import AbstractInference as AbstractInference
from pcexp.inference.base import Equilibrium as Equilibrium
from pcexp.inference.closed_form import ClosedForm as ClosedForm
from pcexp.inference.error_descent import ErrorDescent as ErrorDescent
from pcexp.inference.gradient_descent import GradientDescent as GradientDescent
from pcexp.inference.momentum import Momentum as Momentum
from pcexp.inference.ode import ODE as ODE
from pcexp.inference.sequential import Sequential as Sequential
from pcexp.inference.starts import AmortisedStart as AmortisedStart
from pcexp.inference.starts import ForwardStart as ForwardStart
from pcexp.inference.starts import RandomStart as RandomStart
from pcexp.problem import InferenceProblem as InferenceProblem
