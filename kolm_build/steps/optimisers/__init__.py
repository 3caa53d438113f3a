"""Optimisers: how a stage changes what it trains (spec/algorithms.md)."""
