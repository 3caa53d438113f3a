"""Runs plans: probes the machine, isolates step processes, records what they made.

Knows steps by protocol only (spec/step-protocol.md); which steps exist is an argument.
"""
