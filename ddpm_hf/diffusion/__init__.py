"""The diffusion process: schedule, training objective, and samplers by name."""
