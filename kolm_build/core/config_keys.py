"""Keys of a model's config.json that are asked for before what they hold is understood."""

QUANTISED = "quantization_config"
"""There where the weights are codes; `core.quantisation_config` reads it."""
