"""`publish`: build, check, upload, in this order."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_hf.errors import UserError
from ddpm_hf.export import VARIANTS
from ddpm_hf.files import beside
from ddpm_hf.publishing.card import Card
from ddpm_hf.publishing.check import Job, code_of, difference, run_elsewhere
from ddpm_hf.publishing.folder import build
from ddpm_hf.publishing.ownership import check_place, held, replace
from ddpm_hf.publishing.run import Run, read_run
from ddpm_hf.publishing.snippets import drawn_by_run, num_passes, snippets, variant_snippet

_SLOWER, _LEAST_LIMIT = 10, 1800  # how much slower than the run itself, and the seconds that it may take in any case
_FAR = 25  # gray levels, on average: rounded weights draw nearly the same image


def publish(
    run: str | Path,
    out: str | Path | None = None,
    *,
    variants: Sequence[str] = (),
    push: str | None = None,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    samples: str | Path | None = None,
) -> Path:
    """Makes the folder that the Hub shows of a run, checks that it works elsewhere, and pushes it if asked to.

    out: the folder, `<run>/hub` if not given; one of an earlier publication is replaced
    variants: "fp16", "bf16": weights in half precision besides
    push: OWNER/NAME; private, revision: of that repository
    license: by the Hub's name for it; the recipe's `hub.license` if not given
    samples: the recipe's grid of pictures, where it has been drawn with these weights already; drawn if not given

    Returns the folder. Raises `UserError` before the expensive part for what can be known then; where the folder does not
    draw the run's own image in a fresh process without this package, it is left as `<out>.failed`.
    """
    for variant in variants:
        if variant not in VARIANTS:
            raise UserError(f"--variant: {variant!r} is none; choose from {', '.join(VARIANTS)}")
    for option, given in (("private", private), ("revision", revision)):
        if given and push is None:
            raise UserError(f"--{option}: is of a repository; name one with --push OWNER/NAME, or leave it out")
    variants = list(dict.fromkeys(variants))
    final = place_of(run, out)
    found = read_run(run)
    if final.resolve() == found.folder.resolve():
        raise UserError(f"--out: {final} is the run folder itself; choose another")
    check_place(final)
    check_place(_failed(final))
    if (license or found.license) is None:
        told = "no license is stated, without which nobody else may use the model; --license or hub.license states one"
        print(f"warning: {told}", file=sys.stderr, flush=True)
    if push is not None:
        from ddpm_hf.publishing.upload import check_destination

        check_destination(push, revision)
    with held(final):
        _make(final, found, variants, push, revision, license, None if samples is None else Path(samples))
        if push is not None:
            from ddpm_hf.publishing.upload import upload

            step = "" if found.state is None else f", step {found.state['step']:,}"
            print(upload(final, push, private=private, revision=revision, message=f"{found.name}{step}"), flush=True)
    return final


def _make(
    final: Path,
    found: Run,
    variants: Sequence[str],
    push: str | None,
    revision: str | None,
    license: str | None,
    samples: Path | None,
) -> None:
    """The folder, checked, in its place."""
    new, failed = beside(final, "new"), _failed(final)
    shutil.rmtree(new, ignore_errors=True)
    called = push or final.name
    code = snippets(found, called, revision)
    card = Card(found, code, variants, license or found.license, None if push else called)
    build(new, found, card, variants, samples)
    try:
        _check(new, found, called, revision, variants)
    except UserError as error:
        replace(failed, new)
        raise UserError(f"{failed}: does not work without this package: {error}") from None
    replace(final, new)
    with suppress(UserError):  # somebody works in it
        check_place(failed)
        shutil.rmtree(failed, ignore_errors=True)


def place_of(run: str | Path, out: str | Path | None) -> Path:
    """The folder of a publication."""
    folder = Path(os.path.expanduser(run)) / "hub" if out is None else Path(os.path.expanduser(out))
    return folder.resolve() if folder.name in ("", "..") else folder  # `.` has no name to stand beside


def _failed(final: Path) -> Path:
    return final.with_name(f"{final.name}.failed")


def _check(folder: Path, run: Run, called: str, revision: str | None, variants: Sequence[str]) -> None:
    """Raises `UserError` where the card's code, run elsewhere, does not draw what the run draws."""
    wanted = snippets(run, called, revision)
    halves = [variant_snippet(run, called, variant, revision) for variant in variants]
    card = (folder / "README.md").read_text(encoding="utf-8")
    codes = [code_of(card), *(half.code for half in halves)]
    total = num_passes(run, wanted)
    with tqdm(total=total, unit="step", desc="check", dynamic_ncols=True, disable=None) as bar:
        start = time.monotonic()
        expected = drawn_by_run(run, wanted, bar.update)
        limit = max(_LEAST_LIMIT, _SLOWER * len(codes) * (time.monotonic() - start))
    drawn = run_elsewhere([Job(folder, called, code) for code in codes], limit=limit)
    problem = difference(drawn[0], expected)
    if problem is not None:
        raise UserError(problem)
    first = expected[wanted[0].picture].transpose(1, 2, 0).astype(int)
    for half, pictures in zip(halves, drawn[1:], strict=True):
        theirs = pictures[half.picture].reshape(first.shape).astype(int)
        apart = np.abs(theirs - first)
        if apart.mean() > _FAR:
            raise UserError(f"its {half.picture.removesuffix('.png')} weights draw another picture than the run's own")
