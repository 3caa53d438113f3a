"""Federated training as values: rounds, shares, fixed point, noise, privacy."""
