"""LangChain's own integration tests, with this server where they expect OpenAI.

Run by test_langchain.py in a process of its own: langchain-tests brings pytest plugins that other
tests must not meet. STERNA_URL and STERNA_MODEL say which server.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestSterna(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["STERNA_MODEL"],
            "base_url": os.environ["STERNA_URL"],
            "api_key": "any",
            "temperature": 0,
            "max_tokens": 200,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return False
