"""Inference: activities that lower the energy at fixed weights. One solver a file; each is a final subclass."""

from pcexp.inference.base import AbstractInference, Equilibrium, InferenceProblem
from pcexp.inference.closed_form import ClosedForm
from pcexp.inference.gradient_descent import GradientDescent

__all__ = ["AbstractInference", "ClosedForm", "Equilibrium", "GradientDescent", "InferenceProblem"]
