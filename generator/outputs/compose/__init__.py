"""The mesh as a Compose file: rendered from the same manifest, not yet supported."""

from generator.outputs.compose.render import COMPOSE_FILE, render_compose

__all__ = ["COMPOSE_FILE", "render_compose"]
