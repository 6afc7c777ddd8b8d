"""Resources as files: bootstrap, file xDS and the validation twin, one folder per workload."""

from generator.outputs.files.layout import contents
from generator.outputs.files.placement import default_placement
from generator.outputs.files.publish import publish, write_changed
from generator.outputs.files.validation import EnvoyRefusal, validate_with_envoy

__all__ = ["EnvoyRefusal", "contents", "default_placement", "publish", "validate_with_envoy", "write_changed"]
