"""The HTML page: records, figures, benchmarks and the environment of a run.

In: records of a run and the files beside them. Out: `index.html`, figures, tables of times. It
decides no outcome.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
