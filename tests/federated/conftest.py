"""What is durable is the store's own tests' matter; here nothing waits for a disk."""

import os

import pytest


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
