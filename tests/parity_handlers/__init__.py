"""Parity handlers, one module a family of methods; see `tests/parity.py`."""
