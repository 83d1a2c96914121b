"""Pages in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Visit:
    """A page that is open; at the end it must have had no error and asked for nothing but itself."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.file = file

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def names(self) -> list[str]:
        return list(self.page.locator("#list .name").all_inner_texts())

    def close(self) -> None:
        self.context.close()
        assert self.problems == []
        assert [url for url in self.asked if not url.startswith("data:")] == [self.file.as_uri()]
