"""Weights of a network that belong to none of its layers, by name; and what a shape is."""

from __future__ import annotations

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"

Shape = tuple[int, ...]
