"""Invertible transforms of a site's features and the closed forms that build them."""
