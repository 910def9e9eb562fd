"""Attacks, random requests, overload and long runs against a real server, with figures.

`make attack`, `make fuzz`, `make overload` and `make soak` run these, each in a bounded time, and
write their part of docs/reliability.md. `tests/server/test_reliability.py` runs short forms.
"""
