"""Who vouches for what: keys, envelopes, the trust file, signing and verifying.

The verifier (`verify` and what it imports) needs the standard library and `cryptography` alone,
so that an auditor can run it anywhere.
"""
