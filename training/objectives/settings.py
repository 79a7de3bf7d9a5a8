"""Settings that several objectives share."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator


class BonSettings(BaseModel):
    """The N of the best-of-N to imitate."""

    num_samples: int = Field(16, description="N of the best-of-N to imitate")

    @field_validator("num_samples")
    @classmethod
    def _more_than_one(cls, value: int) -> int:
        if value < 2:
            raise ValueError(
                f"N must be at least 2, got {value}: best-of-1 is the reference policy itself"
            )
        return value


class Regularised(BaseModel):
    """The weight of the KL from the reference."""

    beta: float = Field(0.1, gt=0, description="weight of the KL from the reference policy")
