"""What `nipmesh init` finds out about a folder, and the manifest that it writes from it.

`protos` finds the `.proto` files and their import roots, `programs` what starts a server for them, `plan` puts the two together,
`text` writes the manifest, and `example` has a small project for a folder that holds nothing yet.
"""

from generator.scaffold.plan import NoServicesError, Plan, PlannedService, RefusedError, plan_of, usable_name
from generator.scaffold.text import manifest_text

__all__ = ["NoServicesError", "Plan", "PlannedService", "RefusedError", "manifest_text", "plan_of", "usable_name"]
