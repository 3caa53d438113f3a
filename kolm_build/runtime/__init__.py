"""Loads a model folder or an artifact and generates deterministically."""
