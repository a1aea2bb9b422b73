"""`ddpm-hf demo`."""

import argparse

from ddpm_hf.app.request import Limits
from ddpm_hf.app.server import serve
from ddpm_hf.devices import device_of


def demo(options: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    serve(
        options.models,
        device=device_of(options.device),
        host=options.host,
        port=options.port,
        limits=Limits(options.max_images, options.max_steps),
        queue_size=options.queue_size,
        concurrency=options.concurrency,
        batch_size=options.batch_size,
        trust_remote_code=options.trust_remote_code,
    )
