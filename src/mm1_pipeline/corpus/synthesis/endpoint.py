"""A writer behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import aiohttp

from mm1_pipeline.config.synthesis import EndpointConfig
from mm1_pipeline.corpus.api_keys import ApiKey
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest
from mm1_pipeline.ground.rejects import Reason, Rejected

_OK, _BAD_REQUEST, _TOO_MANY_REQUESTS, _SERVER_ERROR = 200, 400, 429, 500
_MAX_ANSWER_BYTES = 1_000_000
_BACKOFF_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 20.0


class EndpointWriter:
    """Asks a language model for each caption.

    Args:
        config: Where it is, and how it is asked.
        instruction: The prompt's template.
    """

    def __init__(self, config: EndpointConfig, instruction: str) -> None:
        self._config, self._instruction = config, instruction
        self._key = ApiKey(config.key_variable)

    @property
    def provenance(self) -> dict[str, Any]:
        """Model and sampling; the endpoint's address is no part of what the model says."""
        settings = {"max_tokens": self._config.max_tokens, "temperature": self._config.temperature}
        return {"writer": "endpoint", "model": self._config.model, "version": 1, **settings}

    def prompt(self, request: CaptionRequest) -> str:
        """What the model reads."""
        return request.prompt(self._instruction)

    def write(self, requests: Sequence[CaptionRequest]) -> list[str | Rejected]:
        """Asks for all captions, several at once.

        Raises:
            ValueError: The endpoint refuses key, model or address, which no further try mends.
        """
        return asyncio.run(self._write_all(requests))

    async def _write_all(self, requests: Sequence[CaptionRequest]) -> list[str | Rejected]:
        slots = asyncio.Semaphore(self._config.concurrency)
        timeout = aiohttp.ClientTimeout(total=self._config.total_seconds)
        async with aiohttp.ClientSession(
            headers=self._key.headers(), timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:

            async def ask(request: CaptionRequest) -> str | Rejected:
                async with slots:
                    return await self._ask(session, self.prompt(request))

            tasks = [asyncio.ensure_future(ask(request)) for request in requests]
            try:
                return await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

    async def _ask(self, session: aiohttp.ClientSession, prompt: str) -> str | Rejected:
        problem = ""
        for attempt in range(self._config.num_retries + 1):
            if attempt:
                pause = min(_BACKOFF_SECONDS * 2 ** (attempt - 1), _MAX_BACKOFF_SECONDS)
                await asyncio.sleep(pause)
            try:
                status, body = await self._post(session, prompt)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = self._key.hide(f"{type(error).__name__}: {error}")
                continue
            if status == _OK:
                answer = _read_answer(body)
                return self._key.hide(answer) if isinstance(answer, str) else answer
            problem = f"found HTTP status {status}"
            if status == _BAD_REQUEST:
                return Rejected(Reason.REWRITE_FAILED, problem)
            if status != _TOO_MANY_REQUESTS and status < _SERVER_ERROR:
                raise ValueError(
                    f"synthesis.endpoint: {self._config.base_url} answered with status {status}; "
                    f"check base_url, model ({self._config.model!r}) and the key in "
                    f"{self._config.key_variable}."
                )
        return Rejected(Reason.REWRITE_FAILED, problem)

    async def _post(self, session: aiohttp.ClientSession, prompt: str) -> tuple[int, bytes]:
        content = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._config.max_tokens,
            "temperature": self._config.temperature,
        }
        url = f"{self._config.base_url.rstrip('/')}/chat/completions"
        # A redirect would carry the key to another host.
        async with session.post(url, json=content, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise aiohttp.ClientPayloadError("the answer is too large")
            return response.status, bytes(body)


def _read_answer(body: bytes) -> str | Rejected:
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Rejected(Reason.REWRITE_FAILED, f"found no answer in the reply: {error!r}")
    if not isinstance(text, str):
        return Rejected(Reason.REWRITE_FAILED, "found an answer that is no text")
    return text
