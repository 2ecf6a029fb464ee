"""The history of the schema (Alembic). `python -m migrations` brings a database to the newest version."""
