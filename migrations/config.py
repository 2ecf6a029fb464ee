"""Alembic without an ini file: the scripts are in this package, the URL comes from the settings."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config


def alembic_config(owner_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = owner_url
    return config
