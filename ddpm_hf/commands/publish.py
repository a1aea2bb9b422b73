"""`ddpm-hf publish`."""

import argparse

from ddpm_hf.errors import UserError
from ddpm_hf.publishing.publish import publish as make


def publish(options: argparse.Namespace) -> None:
    """The folder, the upload, and the Space's folder beside it."""
    if options.push is None:
        for option in ("private", "revision"):
            if getattr(options, option):
                raise UserError(f"--{option}: is of a repository; name one with --push OWNER/NAME, or leave it out")
    folder = make(
        options.run_folder,
        options.out,
        variants=options.variant or (),
        push=options.push,
        private=options.private,
        revision=options.revision,
        license=options.license,
    )
    print(f"{folder} is ready, and draws the run's own image without this package; README.md is its card")
    if options.space:
        from ddpm_hf.publishing.space import write_space

        space = write_space(folder.with_name(f"{folder.name}-space"), [options.push or str(folder)])
        print(f"{space} is a Space with the demo")
