"""Train a diffusion model of your own: one recipe from images to a Diffusers pipeline."""

__version__ = "0.1.0"
