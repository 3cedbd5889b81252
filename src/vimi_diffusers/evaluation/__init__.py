"""Measures of trained weights on what they were never trained on."""
