"""Name of a load test, and the revisions of the models that it measured."""

import json

import sqlalchemy as sa
from alembic import op

from service.loadtest.measured_models import measured_models

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and fill in the models of the load tests that are stored."""
    op.add_column("run", sa.Column("name", sa.String(80), nullable=True))
    op.add_column("run", sa.Column("models", sa.JSON(), nullable=True))
    run = sa.table(
        "run",
        sa.column("id", sa.String),
        sa.column("result", sa.JSON),
        sa.column("models", sa.JSON),
    )
    connection = op.get_bind()
    for run_id in connection.scalars(sa.select(run.c.id)).all():
        found = connection.scalar(sa.select(run.c.result).where(run.c.id == run_id))
        result = json.loads(found) if isinstance(found, str) else found or {}
        models = measured_models(result)
        connection.execute(sa.update(run).where(run.c.id == run_id).values(models=models))


def downgrade() -> None:
    """Remove the columns."""
    with op.batch_alter_table("run") as batch:
        batch.drop_column("models")
        batch.drop_column("name")
