"""Objectives: what a stage minimises, a module each (spec/algorithms.md)."""
