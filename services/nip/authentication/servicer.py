"""The gRPC methods of AuthService: from the wire to the domain and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from nipmesh.nip.v1 import nip_service_pb2 as pb
from nipmesh.nip.v1 import nip_service_pb2_grpc
from services.chassis.caller import SERVICE, Access, current_caller
from services.chassis.logs import get_logger
from services.nip import wire
from services.nip.authentication.challenges import Challenges
from services.nip.authentication.errors import proof_errors
from services.nip.authentication.http_auth import HttpAuths
from services.nip.domain.nip42 import TTL_SECONDS_DEFAULT
from services.nip.domain.nip98 import Request
from services.nip.login import Logins
from services.nip.wire import MICROSECONDS_PER_SECOND

TOKEN_TYPE: Final = "Bearer"  # noqa: S105  # the scheme's name

_OWNERS: Final = Access.USER | SERVICE("payment")
ACCESS: Final[Mapping[str, Access]] = {
    "/nipmesh.nip.v1.AuthService/Login": Access.PUBLIC,
    "/nipmesh.nip.v1.AuthService/CreateChallenge": Access.PUBLIC,
    "/nipmesh.nip.v1.AuthService/VerifyChallenge": Access.PUBLIC,
    "/nipmesh.nip.v1.AuthService/CreateHttpAuth": _OWNERS,
    "/nipmesh.nip.v1.AuthService/VerifyHttpAuth": _OWNERS,
}
"""Who may call what: who has no token yet may get one."""

_log = get_logger("nip")

Context = grpc.aio.ServicerContext


class AuthServicer(nip_service_pb2_grpc.AuthServiceServicer):
    """nipmesh.nip.v1.AuthService."""

    def __init__(self, logins: Logins, challenges: Challenges, http_auths: HttpAuths) -> None:
        """Share one database with every other replica."""
        self._logins = logins
        self._challenges = challenges
        self._http_auths = http_auths

    async def Login(
        self, request: pb.LoginRequest, context: Context[pb.LoginRequest, pb.LoginResponse]
    ) -> pb.LoginResponse:
        """Exchange a NIP-98 authorization for an access token."""
        with proof_errors():
            session = await self._logins.login(request.authorization)
        _log.info("login granted", pubkey=session.pubkey)
        return pb.LoginResponse(
            access_token=session.access_token.token.reveal().decode(),
            token_type=TOKEN_TYPE,
            expire_time=wire.timestamp_of_us(session.access_token.expire_time_seconds * MICROSECONDS_PER_SECOND),
            pubkey=session.pubkey,
        )

    async def CreateChallenge(
        self,
        request: pb.CreateChallengeRequest,
        context: Context[pb.CreateChallengeRequest, pb.CreateChallengeResponse],
    ) -> pb.CreateChallengeResponse:
        """Make a NIP-42 challenge."""
        ttl_seconds = request.ttl.seconds if request.HasField("ttl") else TTL_SECONDS_DEFAULT
        with proof_errors():
            challenge = await self._challenges.create(request.relay_url, ttl_seconds)
        return pb.CreateChallengeResponse(
            challenge=challenge.text,
            relay_url=challenge.relay_url,
            expire_time=wire.timestamp_of_us(challenge.expire_time_seconds * MICROSECONDS_PER_SECOND),
        )

    async def VerifyChallenge(
        self,
        request: pb.VerifyChallengeRequest,
        context: Context[pb.VerifyChallengeRequest, pb.VerifyChallengeResponse],
    ) -> pb.VerifyChallengeResponse:
        """Exchange the answer to a challenge for an access token."""
        with proof_errors():
            session = await self._challenges.verify(wire.event_of(request.event), request.relay_url)
        _log.info("challenge answered", pubkey=session.pubkey)
        return pb.VerifyChallengeResponse(
            access_token=session.access_token.token.reveal().decode(),
            token_type=TOKEN_TYPE,
            expire_time=wire.timestamp_of_us(session.access_token.expire_time_seconds * MICROSECONDS_PER_SECOND),
            pubkey=session.pubkey,
        )

    async def CreateHttpAuth(
        self, request: pb.CreateHttpAuthRequest, context: Context[pb.CreateHttpAuthRequest, pb.CreateHttpAuthResponse]
    ) -> pb.CreateHttpAuthResponse:
        """Sign an authorization for an HTTP request."""
        with proof_errors():
            authorization = await self._http_auths.create(current_caller().scope, request.key_id, _request_of(request))
        return pb.CreateHttpAuthResponse(
            authorization=authorization.value,
            expire_time=wire.timestamp_of_us(authorization.expire_time_seconds * MICROSECONDS_PER_SECOND),
        )

    async def VerifyHttpAuth(
        self, request: pb.VerifyHttpAuthRequest, context: Context[pb.VerifyHttpAuthRequest, pb.VerifyHttpAuthResponse]
    ) -> pb.VerifyHttpAuthResponse:
        """Check the authorization of an HTTP request, and use it up."""
        with proof_errors():
            proof = await self._http_auths.verify(request.authorization, _request_of(request))
        return pb.VerifyHttpAuthResponse(
            pubkey=proof.pubkey, event_id=proof.event_id, payload_sha256=proof.payload_sha256
        )


def _request_of(message: pb.CreateHttpAuthRequest | pb.VerifyHttpAuthRequest) -> Request:
    """Return the HTTP request that a message means."""
    return Request(url=message.url, method=message.method, payload_sha256=message.payload_sha256)
