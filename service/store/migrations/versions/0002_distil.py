"""Tables of the rollout of checkpoints: the checkpoints, what happened to them, and the rollout's state."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "distil_checkpoint",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("revision", sa.String(80), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("spent", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_distil_checkpoint"),
    )
    op.create_table(
        "distil_event",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("checkpoint_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["distil_checkpoint.id"],
            name="fk_distil_event_checkpoint_id_distil_checkpoint",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_distil_event"),
    )
    op.create_index("ix_distil_event_checkpoint_id", "distil_event", ["checkpoint_id"])
    op.create_table(
        "distil_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_distil_state"),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("distil_state")
    op.drop_table("distil_event")
    op.drop_table("distil_checkpoint")
