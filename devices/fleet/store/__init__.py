"""The collector's store: SQLite, or PostgreSQL beyond one machine."""
