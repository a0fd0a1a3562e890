"""`python -m pcexp.report`: the same as `python -m pcexp report`."""

from pcexp.__main__ import module

module("report")
