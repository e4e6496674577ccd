"""Measures of super-resolved images, each stamped with its protocol."""
