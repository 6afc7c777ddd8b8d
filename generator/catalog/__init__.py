"""Protobuf files to methods: what every later stage believes about a method comes from here."""

from generator.catalog.catalog import Catalog, compile_catalog

__all__ = ["Catalog", "compile_catalog"]
