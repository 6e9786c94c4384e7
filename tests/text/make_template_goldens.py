"""Write template_goldens.json: what transformers makes of the conversations in template_cases.py.

Run with a Python that has transformers: `python tests/text/make_template_goldens.py SHARED_DATA`.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from template_cases import CASES, NOW, templates
from transformers.utils import chat_template_utils


class Clock(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def main() -> None:
    chat_template_utils.datetime = Clock
    goldens = {
        name: {case: rendered(source, tokens, CASES[case]) for case in CASES}
        for name, (source, tokens) in templates(Path(sys.argv[1])).items()
    }
    text = json.dumps(goldens, indent=1, ensure_ascii=False, sort_keys=True)
    Path(__file__).with_name("template_goldens.json").write_text(text + "\n", encoding="utf-8")


def rendered(source: str, tokens: dict[str, str], case: dict[str, Any]) -> dict[str, str]:
    """{"text": ...}, or {"error": ...} where transformers raises."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in case["messages"]]
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages],
            tools=case.get("tools"),
            chat_template=source,
            add_generation_prompt=case.get("add_generation_prompt", True),
            **tokens,
            **case.get("extra", {}),
        )
    except Exception as error:
        return {"error": str(error)}
    return {"text": texts[0]}


if __name__ == "__main__":
    main()
