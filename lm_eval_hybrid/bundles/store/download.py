"""One file from an https server: bounded, and from nowhere else however it redirects."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid import __version__
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPResponse
    from urllib.request import OpenerDirector

MAX_REDIRECTS = 5

_TIMEOUT = 30.0  # seconds without an answer, or without a byte more of one
_CHUNK = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)


def download(url: str, target: Path, limit: int) -> str:
    """Write what lies at an https address into the file `target`; returns its sha256.

    Raises:
        HybridError: one line, where the server cannot be reached or trusted, answers with anything but a file of at
            most `limit` bytes, or redirects too often or to another scheme.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.parse import urljoin

    opener = _opener()
    for _ in range(MAX_REDIRECTS + 1):
        if not url.lower().startswith("https://"):
            raise HybridError(f"{brief(url)}: must be https; found a redirect to this; give the file's own address")
        try:
            with opener.open(url, timeout=_TIMEOUT) as response:
                return _save(response, url, target, limit)
        except HTTPError as error:
            with error:
                location = error.headers.get("Location")
            if error.code not in _REDIRECTS or not location:
                raise _failure(url, f"status {error.code} {error.reason}") from error
            url = urljoin(url, location)
        except HybridError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            raise _failure(url, error.reason if isinstance(error, URLError) else error) from error
    raise HybridError(f"{brief(url)}: at most {MAX_REDIRECTS} redirects; found more; give the file's own address")


def brief(words: object) -> str:
    """Words of others as part of one line: no line breaks or other control characters, and not too many of them."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(words)).split())
    return (text if len(text) <= 300 else f"{text[:300]}...") or type(words).__name__


def _save(response: HTTPResponse, url: str, target: Path, limit: int) -> str:
    announced = response.length  # None where the server does not say
    if announced is not None and announced > limit:
        raise HybridError(f"{brief(url)}: must have at most {limit:,} bytes; found {announced:,}; use another bundle")
    digest, received = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if received > limit:
                raise HybridError(f"{brief(url)}: must have at most {limit:,} bytes; found more; use another bundle")
            digest.update(chunk)
            file.write(chunk)
    if announced is not None and received < announced:
        raise _failure(url, f"the connection cut after {received:,} of {announced:,} bytes")
    return digest.hexdigest()


def _opener() -> OpenerDirector:
    """What speaks https, through the environment's proxy if any, and nothing else: no http, no files, no redirects."""
    from urllib import request

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPSHandler(context=_trust()),
        request.HTTPErrorProcessor(),
        request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", f"lm-eval-hybrid/{__version__}")]
    return opener


def _trust() -> ssl.SSLContext:
    """Whom to believe: the platform's certificates, or those that SSL_CERT_FILE and SSL_CERT_DIR name."""
    import ssl

    return ssl.create_default_context()


def _failure(url: str, found: object) -> HybridError:
    return HybridError(
        f"{brief(url)}: the server must send the file; found {brief(found)}; check the address and the connection"
    )
