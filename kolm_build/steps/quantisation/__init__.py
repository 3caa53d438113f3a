"""Weights in fewer bits: which layers, by which method, and what it cost (spec/quantization.md)."""
