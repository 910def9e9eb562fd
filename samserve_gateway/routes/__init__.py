"""The gateway's routes. Each class adds those of one subject to the application.

Route methods whose summary in `openapi.py` has no description have no docstring: FastAPI would show
it as the description.
"""
