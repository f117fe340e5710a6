"""The labs' networks as tables of layers, and their weights.

In: a network's name, a file of weights. Out: an `nn.Module` in eval mode, the layers that its
weights suffice for, its layers by name (taps), counts of parameters and operations in closed form.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
