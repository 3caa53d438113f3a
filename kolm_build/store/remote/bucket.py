"""A substituter in a bucket: the S3 protocol, path-style, four requests of it.

Requests are signed by AWS Signature Version 4 with the payload left out of the signature: what
arrives is hashed anyway. (boto3 takes twenty times as long to import as this command to start.)
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import SplitResult, quote

from kolm_build.errors import NetworkError, UsageError
from kolm_build.store.remote.credentials import Credentials
from kolm_build.store.remote.http import (
    Headers,
    Signer,
    Web,
    WebPlace,
    unsigned,
)
from kolm_build.store.remote.place import Limits, Source

MAX_PUT_BYTES = 5 << 30
"""S3's own limit for one request."""
_UNSIGNED = "UNSIGNED-PAYLOAD"
_WRITTEN = {200, 201, 204}


def _now() -> datetime:
    return datetime.now(UTC)


def signature_v4(
    credentials: Credentials, region: str, *, now: Callable[[], datetime] = _now
) -> Signer:
    """Signs requests to S3.

    Args:
        credentials: The access key.
        region: The bucket's region.
        now: The time; a server refuses a request that is minutes old.
    """

    def sign(method: str, url: SplitResult, headers: Headers) -> Headers:
        time = now().strftime("%Y%m%dT%H%M%SZ")
        added = {"x-amz-content-sha256": _UNSIGNED, "x-amz-date": time}
        if credentials.token is not None:
            added["x-amz-security-token"] = credentials.token
        signed = {"host": headers["Host"], **added}
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        request = "\n".join([method, url.path, url.query, lines, names, _UNSIGNED])
        scope = f"{time[:8]}/{region}/s3/aws4_request"
        digest = sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"
        key = f"AWS4{credentials.secret}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.new(key, part.encode(), sha256).digest()
        value = (
            f"Credential={credentials.name}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        )
        return {**added, "Authorization": f"AWS4-HMAC-SHA256 {value}"}

    return sign


class BucketPlace(WebPlace):
    """Files in a bucket.

    Args:
        endpoint: The server's address.
        bucket: The bucket.
        prefix: What every name in it begins with.
        region: The bucket's region.
        limits: How long to wait.
        credentials: What opens it; without, requests are not signed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        bucket: str,
        prefix: str,
        region: str,
        limits: Limits,
        credentials: Credentials | None,
    ) -> None:
        signer = signature_v4(credentials, region) if credentials else unsigned
        parts = [endpoint.rstrip("/"), quote(bucket), quote(prefix)]
        super().__init__(Web("/".join(filter(None, parts)), limits=limits, signer=signer))
        self._shown = f"s3://{bucket}/{prefix}".rstrip("/")

    @property
    def url(self) -> str:
        """Its address."""
        return self._shown

    def write(self, path: str, source: Source) -> None:
        """See `Place`."""
        url = self._web.at(path)
        if source.size_bytes > MAX_PUT_BYTES:
            raise UsageError(
                "too large for one object of a bucket",
                file=url,
                expected=f"at most {MAX_PUT_BYTES} bytes",
                actual=f"{source.size_bytes} bytes",
            )
        with self._web.answer("PUT", url, body=source) as response:
            if response.status not in _WRITTEN:
                raise NetworkError(
                    "the bucket refuses to be written to",
                    file=url,
                    actual=f"{response.status} {response.read(200).decode(errors='replace')}",
                    advice="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY open it.",
                )
