"""Training data: artwork from package registries, scenes composed of it, and people's own pictures."""
