"""The decoder: visual tokens to pixels.

A diffusion transformer denoises latents under visual tokens, glyph embeddings and reference pictures; an
autoencoder turns the latents into pixels.
"""
