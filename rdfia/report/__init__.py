"""The page: records, figures, benchmarks and the environment that they were made in, as one HTML
file.

In: records of a run and what lies beside them on disk. Out: `index.html`, figures, tables of times.
It decides nothing.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__, __all__ = front_door(__name__)
