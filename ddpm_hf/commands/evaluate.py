"""`ddpm-hf evaluate`."""

import argparse
from dataclasses import fields

from ddpm_hf.commands.shared import sampling_of
from ddpm_hf.evaluation.records import table
from ddpm_hf.measuring import Request, measure


def evaluate(options: argparse.Namespace) -> None:
    """A record and a table, and the page of nearest reference images."""
    given = vars(options) | {"sampling": sampling_of(options)}
    measured = measure(Request(**{field.name: given[field.name] for field in fields(Request)}))
    if measured is None:
        return
    print(table(measured.record))
    measured.write()
    print(f"record in {measured.out}")
    if measured.page is not None:
        among = f"the nearest of {measured.record['reference']['num_images']:,} reference images"
        print(f"the first samples beside {among} in {measured.page_file}")
