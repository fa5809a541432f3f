"""HTTP with an OpenAI-compatible endpoint that may be slow, down, overloaded, or answer nonsense."""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..checks import check_integer
from ..errors import UserError
from ..extras import missing

try:
    import httpx2
    from anyio.from_thread import start_blocking_portal
except ImportError as error:
    raise missing("sampler='server'", "server", error) from error

Answer = TypeVar("Answer")

# Statuses worth a retry: time-out, conflict, too many requests; every 5xx is one too.
_PASSING = (408, 409, 429)
# Seconds before the first retry, doubled for each further one, and the longest of these waits.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
# Seconds: a longer Retry-After means "not now", and is reported at once.
_LONGEST_RETRY_AFTER = 60.0
_CONNECT_SECONDS = 30.0
# Seconds for a GET, fewer than for samples: a wrong address should be reported soon.
_GET_SECONDS = 60.0
# 256 MiB: far more than any answer needs.
_MAX_BYTES = 2**28
NOT_COMPATIBLE = "the answer is not that of an OpenAI-compatible endpoint"
_IS_IT_RUNNING = " Is the endpoint running, and is base_url right (scheme, port, /v1)?"


class EndpointError(UserError):
    """The endpoint is down, refuses, serves another model, or gives answers that cannot be used."""


class Failure(Exception):
    """One failed attempt: why, what to do, whether to retry, and how long the endpoint asks to wait (seconds)."""

    def __init__(self, reason: str, hint: str = _IS_IT_RUNNING, passing: bool = True, wait: float = 0.0):
        super().__init__(reason)
        self.hint, self.passing, self.wait = hint, passing, wait


class Endpoint:
    """Requests to one address, repeated after a temporary failure. The arguments are those of `ServerSampler`."""

    def __init__(self, base_url: str, api_key: str | None, max_retries: int, timeout: float):
        self.max_retries, self.timeout = check_integer("max_retries", max_retries, at_least=0), timeout
        if not isinstance(timeout, int | float) or not timeout > 0:
            raise UserError(f"must be a number of seconds above 0, got {timeout!r}.", "timeout")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UserError("api_key holds a character that no HTTP header can carry, such as a line break.")
        try:
            address = httpx2.URL(base_url.rstrip("/"))
        except httpx2.InvalidURL as error:
            how = f"is not an address ({error}). Write one such as http://127.0.0.1:8000/v1."
            raise UserError(how, "base_url") from error
        self.url = str(address.copy_with(userinfo=b"", query=None, fragment=None))
        if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
            raise UserError(
                "must be an http:// or https:// address without a query, such as http://127.0.0.1:8000/v1, got "
                f"{self.url!r}.",
                "base_url",
            )
        self._address = str(address)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def client(self, connections: int = 1) -> httpx2.AsyncClient:
        """A client for some requests, to be used as a context manager."""
        return httpx2.AsyncClient(
            headers=self._headers,
            # `ask` bounds the whole request; a limit for each read would let a slow drip through.
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=True,
        )

    def get(self, what: str, path: str, read: Callable[[bytes], Answer]) -> Answer:
        """The answer to one GET, as by `ask`."""
        return self._ask_alone(what, path, read, None, min(self.max_retries, 1), min(self.timeout, _GET_SECONDS))

    def post(self, what: str, path: str, body: Any, read: Callable[[bytes], Any] = bytes, max_retries: int = 0) -> Any:
        """The answer to one POST. It is not retried by default: after an unnoticed success, a retry is refused."""
        return self._ask_alone(what, path, read, body, max_retries, self.timeout)

    def _ask_alone(self, *request: Any) -> Any:
        async def ask() -> Any:
            async with self.client() as client:
                return await self.ask(client, *request)

        return wait_for(ask)

    async def ask(
        self,
        client: httpx2.AsyncClient,
        what: str,
        path: str,
        read: Callable[[bytes], Answer],
        body: dict[str, Any] | None,
        max_retries: int,
        timeout: float,
    ) -> Answer:
        """The answer to a GET, or to a POST of `body`, parsed by `read`, which raises `Failure` for a bad one.

        An error says "The endpoint at … could not `what`". A path that begins with ".." replaces the version, `/v1`.

        Raises:
            EndpointError: No usable answer, with the reason, the number of attempts, and what to do.
        """
        for attempt in range(1, 2 + max_retries):
            try:
                return await self._attempt(client, path, read, body, timeout)
            except Failure as error:
                failure = error
            if attempt > max_retries or not failure.passing or failure.wait > _LONGEST_RETRY_AFTER:
                break
            # Wait even if the endpoint asks for no pause (Retry-After: 0, or a date in the past).
            backoff = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT) * random.uniform(0.75, 1)
            await asyncio.sleep(failure.wait or backoff)
        hint = failure.hint
        if failure.wait > _LONGEST_RETRY_AFTER:
            hint = f" It asks for a pause of {failure.wait:,.0f} s (Retry-After): try again after that."
        attempts = f"{attempt} attempt{'s' * (attempt > 1)}"
        raise EndpointError(
            f"The endpoint at {self.url} could not {what}: {failure} ({attempts}).{hint}"
        ) from failure.__cause__

    async def _attempt(
        self,
        client: httpx2.AsyncClient,
        path: str,
        read: Callable[[bytes], Answer],
        body: dict[str, Any] | None,
        seconds: float,
    ) -> Answer:
        url = self._address.removesuffix("/v1") + path[2:] if path.startswith("..") else self._address + path
        method, content = "GET" if body is None else "POST", bytearray()
        try:
            async with asyncio.timeout(seconds), client.stream(method, url, json=body) as response:
                async for some in response.aiter_bytes():
                    content += some
                    if len(content) > _MAX_BYTES:
                        raise Failure(f"an answer of more than {_MAX_BYTES:,} bytes", " Lower max_tokens.", False)
        except TimeoutError as error:
            raise Failure(
                f"no whole answer within {seconds:g} seconds",
                " Raise the sampler's option timeout (sampler_kwargs), or lower max_tokens.",
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Failure(f"no answer, {type(error).__name__}: {error}") from error
        status = response.status_code
        if not response.is_success:
            passing = status in _PASSING or status >= 500
            wait = _retry_after(response.headers.get("retry-after", ""))
            raise Failure(f"HTTP {status}, {error_text(content)}", _hint(status, path, passing), passing, wait)
        try:
            return read(bytes(content))
        except Failure as error:
            raise Failure(f"{error}, in {error_text(content)}", error.hint) from error


def wait_for(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Run in another thread, since the caller may be in an event loop, as in a notebook. Ctrl-C ends the work."""
    with start_blocking_portal() as portal:
        return portal.call(work)


def error_text(content: bytes | bytearray) -> str:
    """The endpoint's error text, or else the first 200 characters of its answer."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    words = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return repr(str(words)[:1000]) if words else repr(content[:800].decode(errors="replace")[:200])


def read_json(content: bytes) -> Any:
    """The answer, parsed."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Failure(NOT_COMPATIBLE) from error


def _hint(status: int, path: str, passing: bool) -> str:
    if status in (401, 403):
        return " Set OPENAI_API_KEY, or the sampler's option api_key (sampler_kwargs)."
    if status == 404 and path == "/models":
        return " Is base_url right (most endpoints need /v1 at its end)?"
    if status == 404 and path in ("../collective_rpc", "../reset_prefix_cache"):
        return (
            " Start the vLLM server with VLLM_SERVER_DEV_MODE=1 in its environment, which lets it load weights (and "
            "gives more control to anyone who can reach it: keep it off open networks)."
        )
    if path == "../collective_rpc":
        return (
            " Can it see that folder, with weights of the model that it serves? Restart it: the weights that it has "
            "now may be incomplete."
        )
    if status == 404 and "lora_adapter" in path:
        return (
            " Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and check that it can "
            "read the adapter's folder."
        )
    if passing:
        return " Raise the sampler's option max_retries (sampler_kwargs), or lower concurrency if it is overloaded."
    return ""


def _retry_after(asked: str) -> float:
    """Seconds that the endpoint asks to wait; 0 if it does not ask, or not clearly."""
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
