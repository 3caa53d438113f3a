"""Keys, envelopes, trust, the offline verifier: the standard library and `cryptography` only."""
