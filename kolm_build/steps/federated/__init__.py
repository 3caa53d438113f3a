"""The steps of federated training: start, update, seal, aggregate."""
