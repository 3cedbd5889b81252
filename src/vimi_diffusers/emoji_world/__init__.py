"""Emoji world: the embedded data set of drawings, moving subjects and places, and the samples made of them."""
