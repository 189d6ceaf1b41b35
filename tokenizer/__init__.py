"""The semantic tokenizer: pixels to visual tokens.

A vision transformer sees the picture at half size in 16-pixel patches, so that one token covers 32x32 pixels; a
cosine vector quantiser turns every feature into a code of the codebook.
"""
