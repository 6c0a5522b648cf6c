"""The command palette: every key that works here, and in the wizard every setting."""

from collections.abc import Iterator
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from sdtui.keys import KEYS
from sdtui.messages import OpenStep


class KeyProvider(Provider):
    """Offers the active bindings by their sentence in the table of keys."""

    def _commands(self) -> Iterator[tuple[str, str, str]]:
        sentences = {f"{key.scope}.{key.action}": key for key in KEYS}
        seen = set()
        for active in self.screen.active_bindings.values():
            key = sentences.get(active.binding.id or "")
            if key and active.enabled and key.action not in seen and key.scope != "list":
                seen.add(key.action)
                yield f"{key.label} ({key.shown_key})", key.help, active.binding.key

    async def discover(self) -> Hits:
        """Yield every command while nothing is typed."""
        for title, text, key in self._commands():
            yield DiscoveryHit(title, partial(self.app.simulate_key, key), text=title, help=text)

    async def search(self, query: str) -> Hits:
        """Yield commands and settings that match."""
        matcher = self.matcher(query)
        for title, text, key in self._commands():
            score = matcher.match(f"{title} {text}")
            if score > 0:
                yield Hit(score, matcher.highlight(title), partial(self.app.simulate_key, key), text=title, help=text)
        if type(self.screen).__name__ == "WizardScreen":
            async for hit in self._settings(query):
                yield hit

    async def _settings(self, query: str) -> Hits:
        from sdtui.forms import ROWS
        from sdtui.pages import page_of

        matcher = self.matcher(query)
        for row in ROWS.values():
            score = matcher.match(row.name)
            if score > 0:
                step = OpenStep(page_of(row.name), row.name)
                go = partial(self.screen.post_message, step)
                yield Hit(score, matcher.highlight(row.name), go, text=row.name, help=f"[{row.section}] {row.help}")
