"""HTTP with an OpenAI-compatible endpoint that may be slow, away, overloaded, or answer nonsense."""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..errors import UserError
from ..extras import missing

try:
    import httpx2
    from anyio.from_thread import start_blocking_portal
except ImportError as error:
    raise missing("sampler='server'", "server", error) from error

Answer = TypeVar("Answer")

# Statuses that may pass: time-out, conflict, too many requests, and every 5xx.
_PASSING = (408, 409, 429)
# Seconds before the first repetition, doubled for each further one, and the longest of these waits.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
# Seconds: a longer Retry-After means "not now", so the caller hears of it at once.
_LONGEST_RETRY_AFTER = 60.0
_CONNECT_SECONDS = 30.0
# 256 MiB: far above what any answer takes.
_MAX_BYTES = 2**28
_IS_IT_RUNNING = " Is the endpoint running, and is base_url right (scheme, port, /v1)?"


class EndpointError(UserError):
    """The endpoint is down, refuses, serves another model, or gives answers that cannot be used."""


class UnusableAnswer(Exception):
    """An answer with a good status that is not what was asked for: the reason, and what can be done about it."""

    def __init__(self, reason: str, hint: str = _IS_IT_RUNNING):
        super().__init__(reason)
        self.hint = hint


class _Failure(Exception):
    """One failed attempt: why, what to do, whether it may pass, and how long the endpoint asks to wait (seconds)."""

    def __init__(self, reason: str, hint: str = "", passing: bool = True, wait: float | None = None):
        super().__init__(reason)
        self.hint, self.passing, self.wait = hint, passing, wait


class Endpoint:
    """Requests to one address. A request that fails for the moment is repeated; one that fails for good is explained.

    Args:
        base_url: Address with the version. Its user and password are sent, and shown nowhere.
        api_key: Sent as a bearer token; None sends none.
        max_retries: Repetitions of a failed request, 0.5 s apart at first, then twice as long each time, up to 8 s,
            or as long as `Retry-After` asks, up to 60 s.
        timeout: Seconds until a request without its whole answer counts as failed.

    Raises:
        ValueError: `base_url` is no address, or an argument is outside its range.
    """

    def __init__(self, base_url: str, api_key: str | None, max_retries: int, timeout: float):
        if max_retries < 0 or not timeout > 0:
            raise UserError(f"max_retries={max_retries} must be at least 0 and timeout={timeout} above 0 seconds.")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UserError("api_key holds a character that no HTTP header can carry, such as a line break.")
        try:
            address = httpx2.URL(base_url.rstrip("/"))
        except httpx2.InvalidURL as error:
            raise UserError(f"base_url is not an address ({error}). Write it as http://127.0.0.1:8000/v1.") from error
        self.url = str(address.copy_with(userinfo=b"", query=None, fragment=None))
        if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
            raise UserError(
                f"base_url={self.url!r} must be an http:// or https:// address without a query, such as "
                "http://127.0.0.1:8000/v1."
            )
        self.max_retries, self.timeout = max_retries, timeout
        self._address = str(address)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def client(self, connections: int = 1) -> httpx2.AsyncClient:
        """Connections for some requests, to be used as a context."""
        return httpx2.AsyncClient(
            headers=self._headers,
            # `ask` bounds the whole request; a limit for each read would let a slow drip through.
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=True,
        )

    def ask_alone(self, what: str, path: str, read: Callable[[bytes], Answer], *args: Any, **options: Any) -> Answer:
        """One `ask`, with a connection of its own."""

        async def ask() -> Answer:
            async with self.client() as client:
                return await self.ask(client, what, path, read, *args, **options)

        return wait_for(ask)

    async def ask(
        self,
        client: httpx2.AsyncClient,
        what: str,
        path: str,
        read: Callable[[bytes], Answer],
        body: dict[str, Any] | None = None,
        *,
        max_retries: int | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """The answer to a GET, or to a POST of `body`.

        Args:
            client: From `client`.
            what: What is asked for, in the words of an error: "The endpoint at … could not …".
            path: Under `base_url`; one that begins with ".." leaves the version, which is the last folder.
            read: Turns the content into what is returned, or raises `UnusableAnswer`.
            body: JSON to post; None gets.
            max_retries: In place of the endpoint's.
            timeout: In place of the endpoint's, where that is longer.

        Raises:
            EndpointError: No usable answer, with the reason, the number of attempts, and what to do.
        """
        retries = self.max_retries if max_retries is None else max_retries
        seconds = self.timeout if timeout is None else min(timeout, self.timeout)
        for attempt in range(1 + retries):
            try:
                return await self._attempt(client, path, read, body, seconds)
            except _Failure as failure:
                if failure.passing and attempt < retries and (failure.wait or 0) <= _LONGEST_RETRY_AFTER:
                    backoff = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.75, 1)
                    # Not at once where it asks for no pause (Retry-After: 0, or a date gone by).
                    await asyncio.sleep(failure.wait or backoff)
                    continue
                asks = ""
                if failure.wait is not None and failure.wait > _LONGEST_RETRY_AFTER:
                    asks = f" It asks for a pause of {failure.wait:,.0f} s (Retry-After): start again after that."
                raise EndpointError(
                    f"The endpoint at {self.url} could not {what}: {failure} ({attempt + 1} attempt"
                    f"{'s' * (attempt > 0)}).{asks or failure.hint}"
                ) from failure.__cause__
        raise AssertionError  # the last attempt returns or raises

    async def _attempt(
        self,
        client: httpx2.AsyncClient,
        path: str,
        read: Callable[[bytes], Answer],
        body: dict[str, Any] | None,
        seconds: float,
    ) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                response, content = await self._exchange(client, path, body)
        except TimeoutError as error:
            raise _Failure(
                f"no whole answer within {seconds:g} seconds",
                " Raise the sampler's option timeout (sampler_kwargs), or lower max_tokens.",
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _Failure(f"no answer, {type(error).__name__}: {error}", _IS_IT_RUNNING) from error
        if not response.is_success:
            passing = response.status_code in _PASSING or response.status_code >= 500
            raise _Failure(
                f"HTTP {response.status_code}, {error_text(content)}",
                _hint(response.status_code, path),
                passing,
                _retry_after(response.headers),
            )
        try:
            return read(content)
        except UnusableAnswer as error:
            raise _Failure(f"{error}, in {error_text(content)}", error.hint) from error

    async def _exchange(
        self, client: httpx2.AsyncClient, path: str, body: dict[str, Any] | None
    ) -> tuple[httpx2.Response, bytes]:
        url = self._address + path
        if path.startswith(".."):
            url = self._address.removesuffix("/v1") + path[2:]
        content = bytearray()
        async with client.stream("GET" if body is None else "POST", url, json=body) as response:
            async for some in response.aiter_bytes():
                content += some
                if len(content) > _MAX_BYTES:
                    raise _Failure(f"an answer of more than {_MAX_BYTES:,} bytes", " Lower max_tokens.", passing=False)
        return response, bytes(content)


def wait_for(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Run in a thread of its own: the caller may be inside an event loop, as in a notebook. Ctrl-C ends the work."""
    with start_blocking_portal() as portal:
        return portal.call(work)


def error_text(content: bytes) -> str:
    """The endpoint's error text, or else the first 200 characters of what came."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        error = answer.get("error", answer)
        words = (
            next((error[key] for key in ("message", "detail") if key in error), None)
            if isinstance(error, dict)
            else error
        )
        if words:
            return repr(str(words)[:1000])
    return repr(content[:800].decode(errors="replace")[:200])


def read_json(content: bytes) -> Any:
    """The answer, parsed."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnusableAnswer("what came is not an OpenAI-compatible answer") from error


def _hint(status: int, path: str) -> str:
    if status in (401, 403):
        return " Set OPENAI_API_KEY, or the sampler's option api_key (sampler_kwargs)."
    if status == 404 and path == "/models":
        return " Is base_url right (most endpoints need /v1 at its end)?"
    if status == 404 and path in ("../collective_rpc", "../reset_prefix_cache"):
        return (
            " Start the vLLM server with VLLM_SERVER_DEV_MODE=1 in its environment, which lets it take weights (and "
            "lets whoever reaches it do more: keep it off open networks)."
        )
    if path == "../collective_rpc":
        return (
            " Does it see that folder, with weights of the model that it serves? Start it anew: what it has now may "
            "be incomplete."
        )
    if status == 404 and "lora_adapter" in path:
        return (
            " Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and check that it can "
            "read the adapter's folder."
        )
    if status in _PASSING or status >= 500:
        return " Raise the sampler's option max_retries (sampler_kwargs), or lower concurrency if it is overloaded."
    return ""


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds that the endpoint asks to wait; None if it does not ask, or cannot be understood."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(seconds, 0.0) if seconds == seconds else None
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
