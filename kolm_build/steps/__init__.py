"""The steps: each module is one, run as a process of its own under step protocol v1.

Nothing is imported here, so that a step's code tree holds only what that step can import.
"""
