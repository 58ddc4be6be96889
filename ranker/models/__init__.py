"""Models: a decoder, an encoder, their heads, and their Hugging Face form."""
