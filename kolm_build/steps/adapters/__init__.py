"""Adapters: which numbers of a network a stage may change (spec/algorithms.md)."""
