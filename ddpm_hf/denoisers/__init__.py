"""Denoisers: one a file, each importing torch and diffusers alone, to travel to the Hub beside its weights."""
