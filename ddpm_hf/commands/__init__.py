"""What the `ddpm-hf` commands do once their options are known."""
