"""Traces need a package that is not always installed."""

import sys

import pytest

from server import tracing
from server.config import Settings
from server.errors import OperatorError


def test_without_opentelemetry_a_worker_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "server.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)  # an import of it fails
    settings = Settings(database_url="postgresql://", otlp_endpoint="http://127.0.0.1:4318")
    with pytest.raises(OperatorError, match=r"ORDERNUMBERS_OTLP_ENDPOINT needs: pip install 'ordernumbers\[tracing\]'"):
        tracing.start(settings, 0)
