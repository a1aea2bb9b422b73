"""Numbers that tell how good a model is."""
