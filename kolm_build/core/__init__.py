"""Values and functions: no I/O, no clock, no environment, no framework."""
