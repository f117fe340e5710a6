"""The labs' protocols: data, networks and scores combined as in the report.

In: assets on this machine, a device, a profile. Out: what the claims measure, each part computed
once: features and SVMs of TME 7 (`transfer`), images and maps of TME 8 (`gradients`), runs of TME 9
and 10 (`gans`).
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
