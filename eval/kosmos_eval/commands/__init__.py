"""The uses of ``kosmos eval`` beside the evaluation itself: each parses its words and calls the module that does it."""
