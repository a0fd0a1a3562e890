"""`python -m pcexp.records`: the same as `python -m pcexp records`."""

from pcexp.__main__ import module

module("records")
