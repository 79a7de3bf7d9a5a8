"""Tables of runs, their tags, and preferences."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "run",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.String(16), nullable=False),
        sa.Column("headline", sa.Text(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
    )
    op.create_index("ix_run_created", "run", ["created"])
    op.create_table(
        "run_tag",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("tag", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name="fk_run_tag_run_id_run", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "tag", name="pk_run_tag"),
    )
    op.create_index("ix_run_tag_tag", "run_tag", ["tag"])
    op.create_table(
        "preference",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("mode_a", sa.String(128), nullable=False),
        sa.Column("mode_b", sa.String(128), nullable=False),
        sa.Column("n_a", sa.Integer(), nullable=False),
        sa.Column("n_b", sa.Integer(), nullable=False),
        sa.Column("answer_a", sa.Text(), nullable=False),
        sa.Column("answer_b", sa.Text(), nullable=False),
        sa.Column("reward_a", sa.Float(), nullable=True),
        sa.Column("reward_b", sa.Float(), nullable=True),
        sa.Column("winner", sa.String(3), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_preference"),
    )
    op.create_index("ix_preference_modes", "preference", ["mode_a", "mode_b"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("preference")
    op.drop_table("run_tag")
    op.drop_table("run")
