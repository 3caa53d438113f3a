"""Substituters: places that may have what a build would make (spec/substituter.md)."""
