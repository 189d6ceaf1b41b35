"""The checkpoint folder in both directions, and everything around a folder of weights."""
