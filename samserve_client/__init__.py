"""The client of a samserve server: `samserve.Client` and `samserve.AsyncClient`.

It is light: it needs neither PyTorch nor OpenCV. `exchanges` has the whole protocol without any
input or output; `client` and `aio` carry its calls over HTTP.
"""
