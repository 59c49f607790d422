"""Every failure Aether reports, as one tree shared by the command line, the API and plugins.

AetherError                      exit 1   http 500
├─ ConfigError                   exit 3   400   one or many Problems: file, line, key, reason
├─ PluginError                   exit 3   500
│   ├─ DriverBroken · DriverConflict
│   ├─ DriverNotFound            exit 3   400   whoever asks named it
│   └─ HookFailed
├─ Unauthenticated               exit 4   401
├─ Forbidden                     exit 4   403
├─ Refused                       exit 4   409   nothing was changed
├─ NotFound                      exit 1   404
├─ Conflict                      exit 1   409   somebody else changed it: read again and retry
├─ IllegalMove                   exit 1   409   not in the table of legal moves
├─ IntegrityError                exit 1   422   bytes are not what their digest says
├─ Unavailable                   exit 5   503
│   ├─ NoQuorum · NoLeader · ProviderUnavailable
│   └─ OutcomeUnknown                           the write may have happened
├─ ProviderError                 exit 1   502   └─ Unauthorised · QuotaExceeded
├─ WaitTimedOut                  exit 7   504   we stopped watching, the operation goes on
└─ RolledBack                    exit 6   409   the strategy worked, the deployment did not land
"""

from dataclasses import dataclass
from typing import Any, ClassVar


class AetherError(Exception):
    """Something failed that a user can understand; `hint` says what to do about it."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file a user wrote. `line` counts from 1; 0 means unknown."""

    file: str
    line: int
    key: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.reason}" if self.key else f"{where}: {self.reason}"


class ConfigError(AetherError):
    """A configuration or blueprint is not valid; `problems` lists everything found at once."""

    exit_code = 3
    http_status = 400

    def __init__(
        self, message: str, *, problems: tuple[Problem, ...] = (), hint: str = "", **fields: Any
    ) -> None:
        super().__init__(message, hint=hint, **fields)
        self.problems = problems


class PluginError(AetherError):
    """A plugin could not be found, loaded or called."""

    exit_code = 3


class DriverNotFound(PluginError):
    """The configuration names a driver that no installed distribution provides."""

    http_status = 400


class DriverBroken(PluginError):
    """A driver is installed but cannot be imported or built."""


class DriverConflict(PluginError):
    """Two distributions provide a driver of the same name."""


class HookFailed(PluginError):
    """A plugin raised inside a hook whose answer is needed."""


class Unauthenticated(AetherError):
    """No token, an unknown one or an expired one."""

    exit_code = 4
    http_status = 401


class Forbidden(AetherError):
    """The token's role does not allow this."""

    exit_code = 4
    http_status = 403


class Refused(AetherError):
    """A rule or a plugin said no before anything changed."""

    exit_code = 4
    http_status = 409


class NotFound(AetherError):
    """The thing named does not exist."""

    http_status = 404


class Conflict(AetherError):
    """The thing changed since it was read, or exists with other content."""

    http_status = 409


class IllegalMove(AetherError):
    """A node or deployment cannot go from its state to the one asked for."""

    http_status = 409


class IntegrityError(AetherError):
    """Bytes do not match the digest or length they were announced with."""

    http_status = 422


class Unavailable(AetherError):
    """Nothing can answer now; nothing was changed; trying again later is safe."""

    exit_code = 5
    http_status = 503


class NoQuorum(Unavailable):
    """Fewer than half of the cluster's consensus members can be reached."""


class NoLeader(Unavailable):
    """No node leads the cluster at the moment."""


class ProviderUnavailable(Unavailable):
    """The provider's API cannot be reached or asks to wait."""


class OutcomeUnknown(Unavailable):
    """A write was sent and no answer came: it may have happened, so read before repeating it."""


class ProviderError(AetherError):
    """The provider refused or failed an operation."""

    http_status = 502


class Unauthorised(ProviderError):
    """The provider does not accept the credentials, or they lack a permission."""


class QuotaExceeded(ProviderError):
    """The provider's quota or capacity does not allow it."""


class WaitTimedOut(AetherError):
    """We stopped watching; the operation itself goes on."""

    exit_code = 7
    http_status = 504


class RolledBack(AetherError):
    """The deployment was rolled back: the previous version serves."""

    exit_code = 6
    http_status = 409


def to_problem_document(error: AetherError) -> dict[str, Any]:
    """Return the RFC 9457 document for `error`; `type` is the class name."""
    document: dict[str, Any] = {
        "type": type(error).__name__,
        "title": error.message,
        "status": error.http_status,
        "hint": error.hint,
        "fields": error.fields,
    }
    if isinstance(error, ConfigError):
        document["problems"] = [vars(problem) for problem in error.problems]
    return document


def from_problem_document(document: dict[str, Any]) -> AetherError:
    """Rebuild the error that `to_problem_document` described; an unknown type is an AetherError."""
    kind = _BY_NAME.get(str(document.get("type")), AetherError)
    title, hint = str(document.get("title", "")), str(document.get("hint", ""))
    fields = {str(key): value for key, value in dict(document.get("fields") or {}).items()}
    if issubclass(kind, ConfigError):
        problems = tuple(Problem(**problem) for problem in document.get("problems", []))
        return kind(title, hint=hint, problems=problems, **fields)
    return kind(title, hint=hint, **fields)


def _tree(root: type[AetherError]) -> list[type[AetherError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


_BY_NAME = {kind.__name__: kind for kind in _tree(AetherError)}
