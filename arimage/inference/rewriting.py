"""Prompts rewritten by a language model, as the authors of GLM-Image recommend for short ones."""

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from arimage.errors import UsageError
from decoder.glyph import quoted_texts

KEY_VARIABLE = "ARIMAGE_REWRITE_KEY"
TIMEOUT = 60.0
MOST_BYTES = 2**20
INSTRUCTION = (
    "You rewrite prompts for an image generator. Describe in one paragraph what the picture shows: subjects, their "
    "places, background, colours, light, style. Keep the meaning and the language of the prompt. Text in quotes is "
    "written into the picture: keep every quoted text exactly as it is, in the same quotes, and put nothing else in "
    "quotes. Answer with the new prompt alone."
)


@dataclass(frozen=True)
class Rewritten:
    """What to use for a prompt.

    Attributes:
        prompt: the new one, or the original where there is no good one.
        notice: why it is the original.
    """

    prompt: str
    notice: str | None = None


@dataclass(frozen=True)
class Rewriter:
    """Asks a chat endpoint with OpenAI's interface to rewrite prompts.

    Args:
        url: such as ``http://127.0.0.1:8080/v1``; what is in quotes and everything else of a prompt is sent there.
        model: that the endpoint is asked for.
        key: of the endpoint; ``ARIMAGE_REWRITE_KEY`` of the environment by default.

    Raises:
        UsageError: the address is not one of HTTP.
    """

    url: str
    model: str = "default"
    key: str | None = field(default_factory=lambda: os.environ.get(KEY_VARIABLE), repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"rewrite must be the address of a chat endpoint, http://HOST/v1; got {self.url!r:.80}")

    def __call__(self, prompt: str) -> Rewritten:
        """A prompt rewritten, or the original with the reason: never an error, since a picture can be made of it."""
        try:
            answer = self._ask(prompt)
        except (OSError, ValueError, LookupError, TypeError) as error:
            return Rewritten(prompt, f"the prompt was not rewritten: {_reason(error)}")
        if not isinstance(answer, str) or not answer.strip():
            return Rewritten(prompt, "the prompt was not rewritten: the answer is empty")
        answer = answer.strip()
        if sorted(quoted_texts(answer)) != sorted(quoted_texts(prompt)):
            return Rewritten(prompt, "the prompt was not rewritten: its quoted texts did not come back as they were")
        return Rewritten(answer)

    def _ask(self, prompt: str) -> Any:
        url = self.url.rstrip("/")
        url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        body = json.dumps({"model": self.model, "messages": messages}).encode()
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.loads(answer.read(MOST_BYTES))["choices"][0]["message"]["content"]


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the endpoint answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"the endpoint cannot be reached ({error.reason})"
    if isinstance(error, OSError):
        return f"the endpoint cannot be reached ({error})"
    return "the endpoint's answer is not one of a chat endpoint"
