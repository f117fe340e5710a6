"""Four deep-vision labs in a compact package, and a pytest suite that checks their report.

The rooms, in the order in which data flows: `device`, `models`, `data`, then the labs `transfer`
(TME 7), `gradients` (TME 8) and `gans` (TME 9 and 10), `experiments` (their protocols), `claims`,
`report` and `commands`. The docstring of a room says what goes in and what comes out. A room is
imported when it is first used.
"""

from __future__ import annotations

from rdfia import _compat, _former_names
from rdfia._rooms import front_door

__version__ = "0.1.0"
__getattr__, __dir__ = front_door(__name__)

_compat.install()
_former_names.install()
