"""Settings that several objectives have in common."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator


class BonSettings(BaseModel):
    """Settings of objectives that imitate best-of-N."""

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
    """Settings of objectives that penalise the KL from the reference."""

    beta: float = Field(0.1, gt=0, description="weight of the KL from the reference policy")
