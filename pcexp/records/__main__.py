"""`python -m pcexp.records`: the same as `python -m pcexp records`."""

from pcexp.commands import records

records()
