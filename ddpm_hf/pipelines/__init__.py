"""Sampling. Each file stands alone (torch and diffusers only), so that it can travel to the Hub beside its weights."""
