"""The error of a server that cannot start or that stopped by itself."""


class ServerError(Exception):
    """The server cannot start, or one of its processes ended. The message says why."""
