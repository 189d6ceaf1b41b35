"""Prompts rewritten by a language model, as the authors of GLM-Image recommend for short ones."""

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from arimage.errors import UsageError
from arimage.images.recipe import is_text
from arimage.options import Task
from decoder.glyph import quoted_texts

KEY_VARIABLE = "ARIMAGE_REWRITE_KEY"
TIMEOUT = 60.0
MOST_BYTES = 2**20
LONGEST = 4096  # bytes of a new prompt: no tokenizer makes more tokens of it than a model reads
_QUOTES = (
    "Text in quotes is written into the picture: keep every quoted text exactly as it is, in the same quotes, and put "
    "nothing else in quotes. Answer with the new {} alone."
)
INSTRUCTIONS: dict[Task, str] = {
    "generate": "You rewrite prompts for an image generator. Describe in one paragraph what the picture shows: "
    "subjects, their places, background, colours, light, style. Keep the meaning and the language of the prompt. "
    + _QUOTES.format("prompt"),
    "edit": "You rewrite instructions for an image editor that sees the picture, which you do not. Say in one or two "
    "plain sentences what changes and how it looks then, and that the rest stays as it is. Ask for nothing that the "
    "instruction does not ask for, and assume nothing about the picture. Keep the language of the instruction. "
    + _QUOTES.format("instruction"),
}
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


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

    def __call__(self, prompt: str, task: Task = "generate") -> Rewritten:
        """A prompt rewritten, or the original with the reason: never an error, since a picture can be made of it.

        Args:
            task: ``edit`` where the prompt is the instruction of an edit; an empty one stays empty.
        """
        if not prompt.strip():
            return Rewritten(prompt)
        try:
            choice = self._ask(prompt, INSTRUCTIONS[task])
            answer, ended = choice["message"]["content"], choice.get("finish_reason")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, HTTPException) as error:
            return _kept(prompt, _reason(error))
        answer = _THOUGHT.sub("", answer).strip() if isinstance(answer, str) else ""
        if not answer or not is_text(answer):
            return _kept(prompt, "the answer is empty" if not answer else "the answer is no text")
        if ended == "length" or len(answer.encode()) > LONGEST:
            return _kept(prompt, "the answer is too long")
        if sorted(quoted_texts(answer)) != sorted(quoted_texts(prompt)):
            return _kept(prompt, "its quoted texts did not come back as they were")
        return Rewritten(answer)

    def _ask(self, prompt: str, instruction: str) -> Any:
        url = self.url.rstrip("/")
        url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        body = json.dumps({"model": self.model, "messages": messages}).encode()
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.loads(answer.read(MOST_BYTES))["choices"][0]


def rewriter_of(rewrite: "Rewriter | str | None") -> Rewriter | None:
    """A rewriter, which an address stands for.

    Raises:
        UsageError: it is neither, or the address is not one of HTTP.
    """
    if rewrite is None or isinstance(rewrite, Rewriter):
        return rewrite
    if not isinstance(rewrite, str):
        raise UsageError(f"rewrite must be an address or an arimage.Rewriter, got {type(rewrite).__name__}")
    return Rewriter(rewrite)


def _kept(prompt: str, reason: str) -> Rewritten:
    return Rewritten(prompt, f"the prompt was not rewritten: {reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the endpoint answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"the endpoint cannot be reached ({error.reason})"
    if isinstance(error, (OSError, HTTPException)):
        return f"the endpoint cannot be reached ({error})"
    return "the endpoint's answer is not one of a chat endpoint"
