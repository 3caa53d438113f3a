"""The catalogue of training algorithms: literal tables, read by the recipe and the command line."""
