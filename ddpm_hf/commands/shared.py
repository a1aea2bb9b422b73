"""What commands share that draw with a model: the options of `cli.sampling`."""

import argparse

from ddpm_hf.sampling import Sampling


def sampling_of(options: argparse.Namespace) -> Sampling:
    """What the options of `cli.sampling` ask for."""
    of_class, interval = options.class_label, options.guidance_interval
    return Sampling(options.sampler, options.steps, options.eta, of_class, options.guidance_scale, interval)
