"""Exact results for linear networks."""
