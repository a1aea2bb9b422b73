"""Autoencoders: found, or trained here, judged, and scaled for a denoiser."""
