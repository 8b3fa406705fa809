"""The token of a Ray cluster: where it is looked for, and whether a cluster wants it.

Ray presents a token only in processes with RAY_AUTH_MODE=token, but `ray start` asks for one of its own accord as soon
as `~/.ray/auth_token` is there: the driver would be told no more than that it failed to connect.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from vcinr_batch.errors import ConfigError

MODE_VARIABLE = "RAY_AUTH_MODE"
PROBE_SECONDS = 5.0
PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"

# What a driver asks a cluster's head first.
_FIRST_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def cluster_token() -> str:
    """The token, from the places that Ray documents, in their order; empty where there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        with suppress(OSError):
            token = path.read_text().strip()
    return token


def present_token(ray: ModuleType, address: str) -> None:
    """Make Ray present the token from here on where the cluster at `address` wants one; an explicit mode stays.

    Args:
        ray: the module.
        address: `auto`, `host:port` or `ray://host:port`, which is known to answer.

    Raises:
        ConfigError: it wants one and there is none, or another one.
    """
    target = _target(ray, address)
    if target is None or not _refuses(target, ""):
        return
    token = cluster_token()
    if not token:
        raise ConfigError(f"the Ray at {address} wants the cluster's token: put it into {PLACES}")
    if _refuses(target, token):
        raise ConfigError(f"the Ray at {address} does not accept the token in {PLACES}")
    if MODE_VARIABLE in os.environ:
        if os.environ[MODE_VARIABLE].lower() != "token":
            raise ConfigError(
                f"the Ray at {address} wants the cluster's token, but {MODE_VARIABLE} is {os.environ[MODE_VARIABLE]}"
            )
        return
    os.environ[MODE_VARIABLE] = "token"
    with suppress(AttributeError):  # Ray has read the variable when it was imported
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _target(ray: ModuleType, address: str) -> str | None:
    if address == "auto":
        with suppress(Exception):  # not public: without it Ray itself says what is wrong
            address = ray._private.services.canonicalize_bootstrap_address("auto") or ""
    found = re.fullmatch(r"(?:ray://)?(\[?[^/]+?\]?:\d+)", address)
    return found[1] if found else None


def _refuses(target: str, token: str) -> bool:
    """Whether the server answers that it does not know us; False for any other answer, and without one."""
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:
        return False
    metadata = [("authorization", f"Bearer {token}")] if token else []
    # A proxy of the environment would be asked for machines of the cluster's own network.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_FIRST_QUESTION)(b"", timeout=PROBE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
