"""The parts of the golden vectors: one module a topic, each with `vectors()`."""
