"""Runs `ddpm-hf` commands one after another in one process, which spares their imports: `python -m ddpm_hf.studies.measure FILE`.

FILE: JSON, [{"name", "command"}]. Of each a line {"name", "error", "seconds", "broken"} is added to FILE with the suffix .jsonl.
"""

import json
import sys
import time
import traceback
from pathlib import Path

from ddpm_hf.cli import run
from ddpm_hf.errors import UserError
from ddpm_hf.studies.plan import shown


def main(file: str) -> None:
    path = Path(file)
    for job in json.loads(path.read_text()):
        print(f"$ {shown(job['command'], 'ddpm-hf')}", flush=True)
        started, error, broken = time.perf_counter(), None, False
        try:
            run(job["command"])
        except UserError as mistake:
            error = str(mistake)
        except Exception as failure:
            traceback.print_exc()
            first, broken = str(failure).splitlines()[:1], True
            error = f"{type(failure).__name__}: {first[0] if first else ''}"
        with open(path.with_suffix(".jsonl"), "a") as results:
            seconds = round(time.perf_counter() - started, 2)
            line = {"name": job["name"], "error": error, "seconds": seconds, "broken": broken}
            results.write(json.dumps(line) + "\n")
        if error is not None:
            print(f"error: {error}", file=sys.stderr, flush=True)
        if broken:  # a device may be of no more use to this process
            raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1])
