"""Widgets made in a remote cell, in a real page."""
from __future__ import annotations
import pytest
from tests.browser.lab import Book

MAGIC = "%%remote\n"
