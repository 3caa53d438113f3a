"""kolm_build: rebuild a model byte for byte from its lock.

This package imports nothing by itself, so that a step's code tree may hold any subset of it.
"""

__version__ = "0.1.0"
