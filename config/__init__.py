"""The server's settings files, as the package `samserve_config` in an installation."""
