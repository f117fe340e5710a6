"""TME 8: the gradient of a class score with respect to the image.

In: an `nn.Module`, normalised images B x 3 x H x W, classes. Out: saliency maps and their scores,
images that fool the network, images that maximise the score of a class. All three use one loop,
`ascend`.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
