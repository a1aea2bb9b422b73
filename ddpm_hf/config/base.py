"""What a section of a recipe is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def setting(default: Any, meaning: str, *, may_change: bool = False, **limits: Any) -> Any:
    """One setting. `may_change` marks what a resumed run may set otherwise: it cannot alter a result already reached."""
    return Field(default, description=meaning, json_schema_extra={"may_change": may_change}, **limits)
