"""Prompts and completions that are chat messages."""

import json
from collections.abc import Mapping
from typing import Any

from ..problem import DataError, Prompt
from .rows import short


def split_messages(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Split a conversation into its last answer and what precedes it, as training does; keep other rows."""
    if "messages" not in row:
        return row
    messages = row["messages"]
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise DataError(
            f"{where}, column 'messages': it must end with a message of the assistant, after others, got "
            f"{short(messages)}. If it has none, give the columns 'prompt' and 'answer'."
        )
    others = {column: value for column, value in row.items() if column != "messages"}
    return {"prompt": messages[:-1], "completion": messages[-1:], **others}


def checked_prompt(prompt: Any, chat: bool, where: str) -> Prompt:
    """The prompt, text or messages, after checks; with `chat`, text becomes one user message."""
    if isinstance(prompt, str):
        checked_text(prompt, where)
        return [{"role": "user", "content": prompt}] if chat else prompt
    if not are_messages(prompt):
        raise DataError(
            f"{where}: the prompt must be text or a list of messages with 'role' and 'content', got {short(prompt)}"
        )
    # Keep every key, as training does: a chat template may ask for more than role and content.
    messages = [dict(message) for message in prompt]
    for message in messages:
        content = "" if message.get("content") is None and message.get("tool_calls") else message.get("content")
        if not isinstance(message["role"], str) or not isinstance(content, str):
            raise DataError(f"{where}: the role and the content of a message must be text, got {short(prompt)}")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise DataError(
                f"{where}: the tool calls of a message must be a list of objects, got {short(calls)}. Correct them, "
                "or remove the row."
            )
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: the prompt ends with the assistant's message, so there is nothing left to answer. Put it into "
            "the answer column."
        )
    checked_text(json.dumps(messages, ensure_ascii=False, default=str), where)
    return messages


def checked_answer(message: Mapping[str, Any], where: str) -> str:
    """The text of an answering message: its content or tool calls."""
    try:
        text = message_text(message)
    except (AttributeError, TypeError):  # the content is not text, or a call is not an object
        text = ""
    if not text.strip():
        raise DataError(
            f"{where}: the answer's message needs text as its content, or tool calls, got {short(message)}. Fill it, "
            "or remove the row."
        )
    return text


def are_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, each with content or tool calls."""
    return isinstance(value, list) and all(
        isinstance(message, Mapping) and "role" in message and ("content" in message or message.get("tool_calls"))
        for message in value
    )


def is_plain(messages: list[dict[str, Any]]) -> bool:
    """Whether a completion is empty, or one assistant message with only content."""
    return not messages or messages == [{"role": "assistant", "content": messages[-1].get("content")}]


def message_text(message: Mapping[str, Any]) -> str:
    """A message as text: its content, and its tool calls as JSON."""
    calls = message.get("tool_calls") or ()
    texts = [json.dumps(call.get("function", call), ensure_ascii=False) for call in calls]
    return "\n".join([text for text in [message.get("content")] if text] + texts)


def checked_text(text: str, where: str) -> str:
    """The text, if it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half of a character (the lone surrogate {text[error.start]!r}), which neither a tokenizer nor "
            "a file can take. Remove it or complete it."
        ) from error
    return text
