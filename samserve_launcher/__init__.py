"""The launcher is the `samserve` command: it starts, watches, scales and checks a server."""
