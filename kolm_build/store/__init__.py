"""The only writer below a store root: bytes by digest, and the records that say what they are."""
