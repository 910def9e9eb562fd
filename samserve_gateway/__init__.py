"""samapi's HTTP API in front of TorchServe: routes, holds the token, adds nothing else."""
