"""The adapter of the Models Backend, as the settings want it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmqueue.backend import load_backend
from llmqueue.backend.models_backend import Fields

if TYPE_CHECKING:
    from llmqueue.backend import Backend
    from llmqueue.settings import Settings


def load_adapter(settings: Settings) -> Backend:
    """Returns the adapter that LLMQUEUE_BACKEND names; raises UsageError when there is none."""
    token = settings.backend_token.get_secret_value() if settings.backend_token else None
    return load_backend(settings.backend, settings.backend_url, token, _fields(settings))


def _fields(settings: Settings) -> Fields:
    return Fields(
        single_path=settings.backend_single_path,
        batch_path=settings.backend_batch_path,
        model=settings.backend_model_field,
        prompt=settings.backend_prompt_field,
        params=settings.backend_params_field,
        answer=settings.backend_answer_field,
        usage=settings.backend_usage_field,
        input_tokens=settings.backend_input_tokens_field,
        output_tokens=settings.backend_output_tokens_field,
    )
