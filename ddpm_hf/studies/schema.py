"""What a study's YAML file may say.

Names: a *variant* is a model, a *measurement* is a variant drawn from in one way. Rows, claims and figures refer to
measurements, or to a family of them: one whose `sampler`, `steps` or `guidance_scale` is a list, `ddim` with steps
[10, 20] being `ddim_10` and `ddim_20`. A *column* is one of `columns.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ddpm_hf.config import Section

SCALES = ("small", "full")

# a single value of what may be a list
_Several = BeforeValidator(
    lambda value: (
        (value,) if isinstance(value, (int, float, str)) else tuple(value) if isinstance(value, list) else value
    )
)
Samplers = Annotated[tuple[Literal["ddpm", "ddim", "dpmsolver++", "unipc", "heun"], ...], _Several]
Numbers = Annotated[tuple[float, ...], _Several]
Steps = Annotated[tuple[Annotated[int, Field(ge=1)], ...], _Several]
Names = Annotated[tuple[str, ...], _Several]


class Making(Section):
    """Where a model comes from."""

    label: str | None = None  # in tables and figures; the variant's name if not given
    recipe: str | None = None  # trained, by the script that belongs to its kind
    pipeline: str | None = None  # or trained already: a Hub id or a folder
    set: dict[str, Any] = Field(default_factory=dict)  # the recipe's settings otherwise, `section.setting: value`


class Variant(Making):
    """A model; what `small` or `full` say holds at that scale. Without recipe and pipeline it is not there at a scale."""

    autoencoder: str | None = None  # the variant whose autoencoder it is trained through, where that is there
    needs_gpu: bool = False
    may_fail: bool = False  # that it cannot be trained is a result
    small: Making = Making()
    full: Making = Making()


class Measurement(Section):
    """How a variant is drawn from; as `ddpm-hf evaluate` has it."""

    of: str
    label: str | None = None  # may name {steps}, {sampler}, {guidance_scale}
    sampler: Samplers = ("ddpm",)
    steps: Steps | None = None
    eta: float = 0.0
    guidance_scale: Numbers = (1.0,)
    guidance_interval: tuple[float, float] | None = None
    precision: Literal["no", "fp16", "bf16"] = "no"


class Evaluation(Section):
    """What is measured of each, as `ddpm-hf evaluate` has it."""

    num_images: int = Field(ge=2)
    metrics: Names = ("frechet",)
    extractor: str = "inception"
    extractor_weights: str | None = None
    reference: str = "train"
    reference_images: int | None = None
    batch_size: int = Field(64, ge=1)


class Quality(Section):
    """What counts as good, for the column epochs_to_quality: an evaluation during training with `by` at most this."""

    by: str = "frechet"
    at_most: float


class Scale(Section):
    set: dict[str, Any] = Field(default_factory=dict)  # settings of all variants
    evaluate: Evaluation
    quality: Quality | None = None
    tie: float = Field(0.05, ge=0, lt=1)  # values that differ by less than this share are not told apart
    about: str  # what is smaller or other than in the report
    limits: str  # what it cannot show


class Row(Section):
    label: str | None = None  # the measurement's if not given
    of: str | None = None  # a measurement, a family of them, or a variant; none for what only the report has
    # the report's own values by column; with the deviation that it gives, a pair
    reported: dict[str, float | tuple[float, float]] = Field(default_factory=dict)


class Claim(Section):
    """What the report says, and how it shows: the column `by` rises or falls along the list, or is alike throughout."""

    text: str
    by: str
    rises: Names | None = None
    falls: Names | None = None
    alike: Names | None = None
    within: float | None = None  # how much they may differ, as a share, to be alike; the scale's `tie` if not given

    @model_validator(mode="after")
    def _one_order(self) -> "Claim":
        if [self.rises, self.falls, self.alike].count(None) != 2:
            raise ValueError("needs one of rises, falls and alike")
        if len(self.names) < 2:
            raise ValueError("needs two or more to compare")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return self.rises or self.falls or self.alike


class Table(Section):
    title: str
    source: str | None = None  # such as Table 1
    columns: Names
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    note: str | None = None
    limits: dict[Literal["small", "full"], str] = Field(default_factory=dict)  # what it cannot show at a scale


class Picture(Section):
    title: str
    source: str | None = None  # such as Figures 5 to 11
    caption: str | None = None


class Curves(Picture):
    """Columns of `metrics.jsonl` over training, a colour a variant; of two the second is dashed."""

    kind: Literal["curves"]
    of: Names  # variants
    show: Annotated[Names, Field(max_length=2)] = ("loss", "validation_loss")
    log_y: bool = False


class TradeOff(Picture):
    """A column against another, a point a measurement."""

    kind: Literal["trade_off"]
    lines: dict[str, Names]  # label → measurements
    x: str
    y: str
    points: str | None = None  # a column written beside each point
    log_x: bool = True
    log_y: bool = False


class Samples(Picture):
    """The first images of measurements, a row each; those below one another are of the same seed."""

    kind: Literal["samples"]
    of: Names
    num_images: int = Field(20, ge=1)


class Strip(Picture):
    """From noise to images, in equal steps."""

    kind: Literal["strip"]
    of: str


class Evolution(Picture):
    """The pictures that training left, by epoch."""

    kind: Literal["evolution"]
    of: str  # a variant
    pages: int = Field(6, ge=1)  # at most so many of them


class Neighbours(Picture):
    """Samples beside the training images nearest to them, in feature space."""

    kind: Literal["neighbours"]
    of: str


Figure = Annotated[
    Curves | TradeOff | Samples | Strip | Evolution | Neighbours,
    Field(discriminator="kind"),
]


class Study(Section):
    title: str
    about: str
    report: str | None = None  # short name of the report that it follows; none is beyond the reports
    variants: dict[str, Variant]
    measurements: dict[str, Measurement] = Field(default_factory=dict)
    small: Scale
    full: Scale
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
