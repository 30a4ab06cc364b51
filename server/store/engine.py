"""The SQLAlchemy engine of the admin commands. Orders and look-ups have connections of their own kind (pipeline.py)."""

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

APPLICATION = "ordernumbers"


def admin_engine(url: str, *, connect_timeout_seconds: int = 3) -> Engine:
    """An engine for short-lived admin work. `url` is libpq's own form, several hosts included."""

    def connect() -> psycopg.Connection:
        return psycopg.connect(url, connect_timeout=connect_timeout_seconds, application_name=APPLICATION)

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
