"""Alembic's environment: the connection and all else is handed in by ``bss_sync.adapters.sql.migrate``."""

from alembic import context

given = context.config.attributes
context.configure(
    connection=given["connection"],
    version_table=given["version_table"],
    on_version_apply=given["on_version_apply"],
    target_metadata=None,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
