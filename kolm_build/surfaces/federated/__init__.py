"""Federated training between processes: sites, an aggregator, and what they say to each other."""
