"""Layers whose derivatives are exact to second order under vmap, and quick."""
