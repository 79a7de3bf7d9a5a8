"""What alembic runs; online only, on the connection in the configuration's attributes."""

from alembic import context

from service.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter most things; alembic then copies the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
