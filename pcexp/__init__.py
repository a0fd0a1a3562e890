"""Experiments on predictive coding networks: configuration in, claims and figures out."""

__version__ = "0.2.0"
