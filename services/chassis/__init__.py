"""The chassis: what every service of the mesh is built on.

- `run(ServiceDefinition(settings=..., access=..., lifespan=...))` starts, serves, drains and ends a service; see `service`.
- `raise ServiceError(Reason.INVOICE_NOT_FOUND, "...")` below a servicer; `reason_of(error)` on the calling side; see `errors`.
- `current_caller()`, `require_subject()`, `require_operator()`, `require_peer("payment")`, `Access`, `SERVICE(...)`; see `caller`.
- `remaining_s()`: what the running call's deadline leaves; `app.spawn(...)` for work that outlives a call.
- `app.channel`, `open_channel()`: calls through the sidecar; see `client`.
- `app.draining`: set at SIGTERM; `load_secret(path)`; `get_logger(name)`.
- `services.chassis.testing`: `running(...)`, `as_user(...)`, `as_service(...)` for tests.
"""

from services.chassis.caller import (
    ANONYMOUS,
    OPERATOR,
    SERVICE,
    Access,
    AccessTable,
    Caller,
    CallInfo,
    Identities,
    acting_for,
    current_call,
    current_caller,
    remaining_s,
    require_operator,
    require_peer,
    require_subject,
    set_current_call,
)
from services.chassis.client import NoEgressError, channel, open_channel, open_channel_sync
from services.chassis.draining import Draining
from services.chassis.errors import (
    CODE_OF,
    DOMAIN,
    FieldViolation,
    InvalidRequest,
    PreconditionViolation,
    Reason,
    ServiceError,
    StartError,
    not_found,
    precondition_failed,
    reason_of,
    retry_delay_ms_of,
    rich_status,
    status_of,
    unavailable,
)
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes, SecretFileError, load_secret
from services.chassis.server import AccessTableError, run, serve
from services.chassis.service import Application, Registration, ServiceDefinition
from services.chassis.settings import ChassisSettings, load_settings
from services.chassis.sockets import ListenError

__all__ = [
    "ANONYMOUS",
    "CODE_OF",
    "DOMAIN",
    "OPERATOR",
    "SERVICE",
    "Access",
    "AccessTable",
    "AccessTableError",
    "Application",
    "CallInfo",
    "Caller",
    "ChassisSettings",
    "Draining",
    "FieldViolation",
    "Identities",
    "InvalidRequest",
    "ListenError",
    "NoEgressError",
    "PreconditionViolation",
    "Reason",
    "Registration",
    "SecretBytes",
    "SecretFileError",
    "ServiceDefinition",
    "ServiceError",
    "StartError",
    "acting_for",
    "channel",
    "current_call",
    "current_caller",
    "dependency_failed",
    "get_logger",
    "load_secret",
    "load_settings",
    "not_found",
    "open_channel",
    "open_channel_sync",
    "precondition_failed",
    "reason_of",
    "remaining_s",
    "require_operator",
    "require_peer",
    "require_subject",
    "retry_delay_ms_of",
    "rich_status",
    "run",
    "serve",
    "set_current_call",
    "status_of",
    "unavailable",
]
