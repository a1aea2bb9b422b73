import json
from pathlib import Path

import numpy as np
import pytest

from ddpm_hf.studies.plan import make_plan
from ddpm_hf.studies.study import load_study

STUDY = """
title: Two sizes
about: A small model beside a smaller one.
variants:
  large: {recipe: quickstart, label: the larger}
  tiny: {recipe: quickstart, set: {model.block_out_channels: [16, 32]}}
measurements:
  large: {of: large}
  tiny: {of: tiny, label: the smaller}
  ddim: {of: tiny, label: "DDIM, {steps} steps", sampler: ddim, steps: [5, 10]}
small:
  about: Digits.
  limits: Much.
  set: {train.max_steps: 20, train.warmup_steps: 2, track.trackers: []}
  evaluate: {num_images: 40, metrics: [frechet, kernel], extractor: classifier}
full:
  about: The same.
  limits: Nothing.
  evaluate: {num_images: 100}
tables:
  - title: Sizes
    source: Table 1
    columns: [frechet, kernel, sampling_seconds]
    rows:
      - {label: another's, reported: {frechet: 14.73}}
      - {of: large, reported: {frechet: 2.5, sampling_seconds: 217}}
      - {of: tiny, reported: {frechet: 72.307}}
      - {of: ddim}
    claims:
      - {text: The larger is better, by: frechet, rises: [large, tiny]}
figures:
  - {kind: curves, title: Loss, of: [large, tiny]}
  - {kind: trade_off, title: Steps, lines: {DDIM: [ddim]}, x: steps, y: frechet}
  - {kind: samples, title: Images, of: [large, tiny]}
"""


@pytest.fixture
def write_study(tmp_path):
    """A function from replacements in a small study's text to its file."""

    def write(*replacements, text=STUDY):
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "sizes.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def make(tmp_path, write_study):
    """A function from replacements in the small study's text to its plan."""

    def plan(*replacements, settings=None, scale="small", **evaluation):
        return make_plan(load_study(write_study(*replacements)), scale, tmp_path / "study", settings, evaluation)

    return plan


class FakeRunner:
    """Stands for the commands: notes what runs, and leaves what it would have left.

    failing: part of a command → exit code and what it prints; metrics: measurement → values of its record
    """

    def __init__(self):
        self.commands, self.environments, self.failing, self.metrics = [], [], {}, {}

    def __call__(self, command, environment, log):
        self.commands.append(command)
        self.environments.append(environment)
        if command[1] != "ddpm_hf.studies.measure":
            for part, (code, text) in self.failing.items():
                if part in " ".join(command):
                    with open(log, "a") as file:
                        file.write(text)
                    return code
            self.train(command)
            return 0
        for job in json.loads(Path(command[2]).read_text()):
            name = job["name"]
            for part, (code, text) in self.failing.items():
                if part in name:
                    with open(log, "a") as file:
                        file.write(text)
                    if code != 2:
                        return code
                    self.result(command[2], name, text.removeprefix("error: ").strip())
                    break
            else:
                self.measure(name, job["command"])
                self.result(command[2], name, None)
        return 0

    def train(self, command):
        run = Path(command[command.index("--run.output_dir") + 1]) / command[command.index("--run.name") + 1]
        run.mkdir(parents=True, exist_ok=True)
        lines = [
            {"step": 10, "images_seen": 640, "loss": 0.5, "training_seconds": 30.0},
            {"step": 20, "images_seen": 1280, "loss": 0.25, "training_seconds": 60.0},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def measure(self, name, command):
        out = Path(command[command.index("--out") + 1])
        if command[0] == "sample":
            images = np.zeros((4, 8, 8, 1), np.uint8)
            np.savez(out, images=images, seeds=np.arange(4))
            return
        out.write_text(json.dumps(record(self.metrics.get(name, {"frechet_distance_classifier": 5.0}))))

    def result(self, listed, name, error):
        with open(Path(listed).with_suffix(".jsonl"), "a") as file:
            file.write(json.dumps({"name": name, "error": error, "seconds": 1.0, "broken": False}) + "\n")

    @property
    def trained(self):
        names = [c[c.index("--run.name") + 1] for c in self.commands if "--run.name" in c]
        return names


def record(metrics, steps=1000):
    return {
        "model": "x",
        "sampling": {"sampler": "ddpm", "steps": steps, "network_evaluations": steps, "guidance_scale": 1.0},
        "num_images": 40,
        "reference": {"source": "digits", "num_images": 1797, "part": "train"},
        "extractor": {"name": "classifier", "weights": "w", "dimensions": 64, "accuracy": 0.975},
        "metrics": metrics,
        "warnings": ["40 images are few"],
        "times": {"sampling_seconds": 12.3456, "images_per_second": 3.2},
        "versions": {"torch": "9.9"},
        "device": "a test's",
    }


@pytest.fixture
def runner():
    return FakeRunner()
