"""What makes the parts of a model: vocabulary, vision tower, text encoder. One process each."""
