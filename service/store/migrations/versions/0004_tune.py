"""Runs of vbon tune, with their latest reports and their tables of measured settings."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "tune_run",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_within_s", sa.Float(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("measured", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tune_run"),
    )
    op.create_index("ix_tune_run_started", "tune_run", ["started"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("tune_run")
