"""Logs of every process: to standard error, so that standard output holds answers only."""

import logging
import sys
from typing import Any

import structlog

from pipeline.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Logs go to standard error, as text or one JSON object a line."""
    renderer: Any = structlog.processors.JSONRenderer() if settings.log_json else structlog.dev.ConsoleRenderer()
    level = getattr(logging, settings.log_level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
