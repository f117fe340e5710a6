"""The commands of `rdfia`, which `rdfia/__main__.py` runs.

In: the words of a command line. Out: files, lines of text, bars on the error stream, an exit code.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
