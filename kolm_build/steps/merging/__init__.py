"""Methods that combine models: pure functions of tensors, one module each (MERGE-1 on)."""
