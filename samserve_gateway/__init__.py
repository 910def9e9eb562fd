"""The gateway: samapi's HTTP API in front of TorchServe.

It chooses the lane that answers a request, holds TorchServe's tokens, and needs no PyTorch.
`app.py` shows how its parts fit together.
"""
