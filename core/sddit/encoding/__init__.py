"""Encode the images of a data set with a codec, into a cache of latents that the data set `latents` reads."""
