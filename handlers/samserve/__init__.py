"""Segment Anything as a library: images and prompts in, GeoJSON Features out.

The way of a request, a module a step:
`requests` -> `images` -> `encoder` -> `decoder` (through `prompts` or `automask`)
-> `polygons` -> `features`. `errors` is what may go wrong on the way.

It knows nothing of TorchServe or HTTP; `sam_handler.py` beside this folder
translates between the two.
"""

__version__ = "0.1.0"
