"""`ddpm-hf publish`."""

import argparse
from pathlib import Path

from ddpm_hf.errors import UserError
from ddpm_hf.publishing.ownership import check_place
from ddpm_hf.publishing.publish import place_of
from ddpm_hf.publishing.publish import publish as make


def publish(options: argparse.Namespace) -> None:
    """The folder, the upload, and the Space's folder beside it."""
    if options.space and options.revision not in (None, "main"):
        raise UserError(
            "--space: its demo loads the main branch; leave --revision out, or publish the Space without --push"
        )
    space = _space_beside(options) if options.space else None
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
    if space is not None:
        from ddpm_hf.publishing.space import write_space

        print(f"{write_space(space, [options.push or str(folder)])} is a Space with the demo")
        if options.private:
            print("as a Space it finds the private model by a secret, HF_TOKEN, in the Space's settings")


def _space_beside(options: argparse.Namespace) -> Path:
    """Where the Space's folder goes. Raises `UserError` where there is something else, or an earlier one was changed."""
    folder = place_of(options.run_folder, options.out)
    space = folder.with_name(f"{folder.name}-space")
    check_place(space)
    return space
