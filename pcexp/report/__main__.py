"""`python -m pcexp.report`: the same as `python -m pcexp report`."""

from pcexp.report.rendering import main

main()
