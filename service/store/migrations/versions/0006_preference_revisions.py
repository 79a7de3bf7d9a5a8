"""Revisions of the models behind both answers of a verdict; unknown for those given before."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("preference", sa.Column("revision_a", sa.Text(), nullable=True))
    op.add_column("preference", sa.Column("revision_b", sa.Text(), nullable=True))


def downgrade() -> None:
    """Remove the columns."""
    with op.batch_alter_table("preference") as batch:
        batch.drop_column("revision_b")
        batch.drop_column("revision_a")
